"""Settings of the evaluation, `evaluation.*`, and which of them a process has a value for."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from diffusion.config import (
    Config,
    Dpmpp2M,
    GuidanceConfig,
    Later,
    ProcessConfig,
    SolverConfig,
    check_solver,
)
from diffusion.config.solver import limit_nfe
from trainer.config.fields import Fraction, Seed

MAX_SETS, MAX_CURVE = 10_000, 100  # of samples: by seeds, and by numbers of network evaluations
MAX_SAMPLES, MAX_IMAGES = 10**7, 10**8  # of a set, and of all

Metric = Literal["vlb", "continuous_vlb", "nll", "denoising", "frechet", "kid", "precision_recall"]
SAMPLED: tuple[Metric, ...] = ("frechet", "kid", "precision_recall")  # which are of samples, not of held-out images
ExtractorName = Literal["pixels", "classifier", "efficientnet_lite0", "inception"]


class EvaluationConfig(Config):
    """What is measured once training ends, with the EMA weights.

    `metrics` are the three likelihoods of the held-out images, which are three questions and never compared with each
    other; their denoising error against log-SNR; and what `seeds` sets of samples are like, by the features of
    `extractors`, the first of which also tells precision and recall. `inception` needs a TorchScript file of yours.
    `nfe_curve` scores samples at these numbers of network evaluations too. `nll_rtol` is how closely the ODE is
    integrated. `reference` is an .npz of published statistics (mu and sigma, as the FID literature has them), which the
    Frechet distance by the extractor with as many features is to, instead of to the training images.
    """

    metrics: tuple[Metric, ...] = ("vlb", "frechet")
    extractors: tuple[ExtractorName, ...] = ("classifier",)
    inception_file: str | None = None
    inception_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    seeds: Annotated[int, Field(ge=1, le=MAX_SETS)] = 1
    samples: Annotated[int, Field(ge=65, le=MAX_SAMPLES)] = 1437
    nfe_curve: Annotated[tuple[Annotated[int, Field(ge=1, le=10**6)], ...], Field(max_length=MAX_CURVE)] = ()
    seed: Seed = 0
    solver: SolverConfig = Field(default=Dpmpp2M(), discriminator="kind")
    guidance: GuidanceConfig | None = None
    vlb_draws: Annotated[int, Field(ge=1, le=10_000)] = 32
    nll_rtol: Fraction = 1e-3
    classifier_seed: Seed = 0
    reference: Annotated[str | None, Later("0.2")] = None

    @property
    def samples_images(self) -> bool:
        """Whether any metric is of samples."""
        return not set(SAMPLED).isdisjoint(self.metrics)

    @field_validator("metrics", "extractors", "nfe_curve")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if len(set(value)) < len(value) or (not value and info.field_name != "nfe_curve"):
            choices = {"metrics": Metric, "extractors": ExtractorName}.get(str(info.field_name))
            raise ValueError(
                f"allowed: {'one or more of ' + ', '.join(get_args(choices)) + ', ' if choices else ''}each once"
            )
        return value

    @field_validator("inception_file", "reference")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise ValueError("allowed: an absolute path that every node sees")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> "EvaluationConfig":
        if "inception" in self.extractors and self.inception_file is None:
            raise ValueError(
                f"extractors = {list(self.extractors)}: inception needs inception_file; allowed: the path of an "
                "Inception-v3 as TorchScript, or another extractor"
            )
        if self.nfe_curve and self.solver.kind == "rk45":
            raise ValueError("nfe_curve: rk45 chooses its steps by itself; allowed: another solver, or none")
        if (images := (self.seeds + len(self.nfe_curve)) * self.samples) > MAX_IMAGES:
            raise ValueError(
                f"samples = {self.samples}: {images} with all seeds and the nfe_curve; allowed: at most {MAX_IMAGES}"
            )
        return self


def has_metric(process: ProcessConfig, metric: Metric) -> bool:
    """Whether a process has a value of it: neither integral over log-SNR can start from a terminal SNR of zero."""
    return metric not in ("continuous_vlb", "nll", "denoising") or not process.schedule.zero_terminal_snr


def check_metrics(process: ProcessConfig, metrics: tuple[Metric, ...]) -> None:
    """Refuse what a process has no value of.

    Raises:
        ValueError: naming the metric and what is allowed.
    """
    for metric in metrics:
        if not has_metric(process, metric):
            others = ", ".join(name for name in get_args(Metric) if has_metric(process, name))
            raise ValueError(
                f"evaluation.metrics = {metric}: neither the continuous bound nor the ODE can start from a terminal "
                f"SNR of zero; allowed: {others}, or process.schedule.zero_terminal_snr = false"
            )


def check_curve(process: ProcessConfig, evaluation: EvaluationConfig) -> None:
    """Refuse numbers of network evaluations that the process has not so many steps for.

    Raises:
        ValueError: naming the setting and what is allowed.
    """
    for nfe in evaluation.nfe_curve:
        check_solver(process, limit_nfe(evaluation.solver, nfe), f"evaluation.nfe_curve = {nfe}: solver")
