"""RunConfig: everything one training run depends on, and its identity.

The canonical JSON of a resolved RunConfig travels unchanged from the command line to the workers, MLflow, checkpoints
and the model package. This module imports no torch.
"""

import hashlib
import json
import re
from typing import Annotated, Any, Literal, cast, get_args
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from diffusion.config import (
    Config,
    Count,
    DdpmProcess,
    Dpmpp2M,
    GuidanceConfig,
    NetworkConfig,
    ObjectiveConfig,
    Positive,
    ProcessConfig,
    SolverConfig,
    UNetConfig,
    check_guidance,
    check_objective,
    check_solver,
)

Fraction = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Alias = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$")]
Width = Annotated[float, Field(gt=0, le=0.28)]
Metric = Literal["vlb", "continuous_vlb", "nll", "denoising", "frechet", "kid", "precision_recall"]
SAMPLED: tuple[Metric, ...] = ("frechet", "kid", "precision_recall")  # which are of samples, not of held-out images
Extractor = Literal["pixels", "classifier", "efficientnet_lite0", "inception"]
CHALLENGER = "challenger"
Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class DataConfig(Config):
    """Where the images come from and how they are split; the split has its own seed, so runs stay comparable.

    The others say how a source that is not prepared yet is: `size` null means the commonest, columns are Parquet's and
    null means found, and `label_column` none leaves labels out.
    """

    source: Annotated[str, Field(min_length=1)] = "digits"
    heldout_fraction: Fraction = 0.2
    split_seed: Seed = 0
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    channels: Literal["auto", 1, 3] = "auto"
    image_column: Annotated[str, Field(min_length=1)] | None = None
    label_column: Annotated[str, Field(min_length=1)] | None = None


class OptimConfig(Config):
    """AdamW with linear warm-up to a constant rate, so that a run may be lengthened without changing its past."""

    lr: Positive = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    max_grad_norm: Positive = 1.0


class EmaConfig(Config):
    """Power-function EMA: widths of profiles relative to the training so far.

    Two tracks are kept, with snapshots each `snapshot_every` steps that are thinned out as training goes on. The model
    has the width `sigma_rel`: a track's own, or one made of the snapshots, which the tracks must span.
    """

    sigma_rel: Width = 0.1
    tracks: tuple[Width, Width] = (0.05, 0.1)
    snapshot_every: Count = 8

    @property
    def span(self) -> tuple[float, float]:
        """The widths that can be made of the tracks with an error of about one percent."""
        return self.tracks[0], min(0.28, 1.5 * self.tracks[1])

    @model_validator(mode="after")
    def _spanned(self) -> "EmaConfig":
        if not self.tracks[0] < self.tracks[1]:
            raise ValueError(f"tracks = {list(self.tracks)}; allowed: two widths, the smaller first")
        low, high = self.span
        if not low <= self.sigma_rel <= high:
            raise ValueError(f"sigma_rel = {self.sigma_rel}; allowed: {low:g} to {high:g}, which the tracks span")
        return self


class AugmentConfig(Config):
    """Random changes of a training image, drawn anew each time it is used; evaluation sees the images as they are.

    `horizontal_flip` mirrors every second image; `crop_padding` pads by so many reflected pixels on each side and crops
    the image's size back out anywhere.
    """

    horizontal_flip: bool = False
    crop_padding: Annotated[int, Field(ge=0, le=256)] = 0


class TrainingConfig(Config):
    """How long, with how large a global batch, in which precision, and what is done about NaN and infinity.

    `dequantise` uniform trains on continuous data (diffusion.levels.dequantise), which a density can be asked of.

    `skip` leaves a step with a non-finite loss or gradient out on all ranks; after `max_skips` in a row the weights of
    the last good checkpoint are taken up again, once for each checkpoint.
    """

    steps: Count = 1500
    global_batch_size: Count = 128
    precision: Literal["fp32", "bf16"] = "fp32"
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skips: Count = 5
    augment: AugmentConfig = AugmentConfig()
    dequantise: Literal["none", "uniform"] = "none"


class EvaluationConfig(Config):
    """What is measured once training ends, with the EMA weights.

    `metrics` are the three likelihoods of the held-out images, which are three questions and never compared with each
    other; their denoising error against log-SNR; and what `seeds` sets of samples are like, by the features of
    `extractors`, the first of which also tells precision and recall. `inception` needs a TorchScript file of yours.
    `nfe_curve` scores samples at these numbers of network evaluations too. `nll_rtol` is how closely the ODE is
    integrated.
    """

    metrics: tuple[Metric, ...] = ("vlb", "frechet")
    extractors: tuple[Extractor, ...] = ("classifier",)
    inception_file: str | None = None
    inception_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    seeds: Count = 1
    samples: Annotated[int, Field(ge=65)] = 1437
    nfe_curve: tuple[Count, ...] = ()
    seed: Seed = 0
    solver: SolverConfig = Field(default=Dpmpp2M(), discriminator="kind")
    guidance: GuidanceConfig | None = None
    vlb_draws: Annotated[int, Field(ge=1)] = 32
    nll_rtol: Fraction = 1e-3
    classifier_seed: Seed = 0

    @property
    def samples_images(self) -> bool:
        """Whether any metric is of samples."""
        return not set(SAMPLED).isdisjoint(self.metrics)

    @field_validator("metrics", "extractors", "nfe_curve")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if len(set(value)) < len(value) or (not value and info.field_name != "nfe_curve"):
            choices = {"metrics": Metric, "extractors": Extractor}.get(str(info.field_name))
            raise ValueError(
                f"allowed: {'one or more of ' + ', '.join(get_args(choices)) + ', ' if choices else ''}each once"
            )
        return value

    @field_validator("inception_file")
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
        return self


class DeepSpeedConfig(Config):
    """What DeepSpeed is told beside the ZeRO stage, in its own words; null leaves a size to it, in elements.

    `cpu` keeps the optimizer's state (stages 1 to 3) or the parameters too (stage 3) in the host's memory.
    `activation_checkpointing` computes the network's activations again in the backward pass.
    """

    offload_optimizer: Literal["none", "cpu"] = "none"
    offload_parameters: Literal["none", "cpu"] = "none"
    activation_checkpointing: bool = False
    overlap_comm: bool | None = None
    reduce_bucket_size: Count | None = None
    allgather_bucket_size: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    stage3_prefetch_bucket_size: Count | None = None
    stage3_param_persistence_threshold: Annotated[int, Field(ge=0)] | None = None

    @field_validator("offload_optimizer", "offload_parameters", mode="before")
    @classmethod
    def _not_on_disk(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - whatever was given
        if value == "nvme":
            why = {
                "offload_optimizer": "the EMA and checkpoints cannot reach master weights that DeepSpeed keeps on NVMe",
                "offload_parameters": "NVMe needs an operator of DeepSpeed's compiled on every node; it is untried",
            }
            raise ValueError(f"allowed: none or cpu; {why[str(info.field_name)]}")
        return value

    def check_stage(self, stage: int) -> None:
        """Refuse what a ZeRO stage has no use for.

        Raises:
            ValueError: naming the setting and the stages that it is for.
        """
        for name, stages in STAGES_OF.items():
            value = getattr(self, name)
            if value not in (None, "none") and stage not in stages:
                allowed = " or ".join(map(str, stages))
                raise ValueError(f"deepspeed.{name} = {value}; allowed: with zero_stage {allowed}, not {stage}")


STAGES_OF = {
    "offload_optimizer": (1, 2, 3),
    "offload_parameters": (3,),
    "overlap_comm": (1, 2, 3),
    "reduce_bucket_size": (1, 2, 3),
    "allgather_bucket_size": (1, 2),
    "stage3_prefetch_bucket_size": (3,),
    "stage3_param_persistence_threshold": (3,),
}


class ParallelConfig(Config):
    """How the work is spread and where it is kept; changes nothing about the method.

    `workers` is a number, or [least, most] for as many as the cluster has room for, also while training goes on.
    `channels_last` is the order in which convolutions on GPUs want images; `compile` is torch.compile.
    """

    workers: int | tuple[int, int] = 2
    zero_stage: Literal[0, 1, 2, 3] = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_worker: Positive = 1.0
    micro_batch_size: Count | None = None
    channels_last: bool = False
    compile: bool = False
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()

    @property
    def least_workers(self) -> int:
        """Without which nothing runs."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """More than which are never asked for."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: Any) -> Any:  # noqa: ANN401 - whatever was given
        bounds = tuple(cast("list[Any]", value)) if isinstance(value, list | tuple) else (value, value)
        if [type(bound) for bound in bounds] != [int, int] or not 1 <= bounds[0] <= bounds[1]:
            raise ValueError("allowed: a number of at least 1, or [least, most] for as many as there is room for")
        return value if isinstance(value, int) else bounds

    @model_validator(mode="after")
    def _parts_fit(self) -> "ParallelConfig":
        self.deepspeed.check_stage(self.zero_stage)
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile = True: stage 3 takes the parameters away between layers; allowed: zero_stage 0 to 2"
            )
        return self


class GateConfig(Config):
    """What a new version of a registered model has to show before it gets `run.alias`.

    It must beat the version that has the alias by `metric`, beyond `sigmas` standard errors of the difference, and its
    three likelihoods must be within `likelihood_gap` bits/dim of each other.
    """

    metric: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] = "vlb_bpd"
    sigmas: Positive = 2.0
    likelihood_gap: Positive = 1.0


class RunSettings(Config):
    """Names, places and intervals; null means the default that `python -m trainer --dry-run` shows.

    `evaluate_every` so many steps a checkpoint is evaluated while training goes on; null: the last step alone.
    """

    experiment: Slug = "digits"
    name: Slug | None = None
    storage: str | None = None
    tracking_uri: str | None = None
    register_as: Slug | None = None
    alias: Alias = "champion"
    gate: GateConfig = GateConfig()
    checkpoint_every: Count = 250
    keep_checkpoints: Count = 2
    evaluate_every: Count | None = None
    log_every: Count = 25

    @model_validator(mode="after")
    def _evaluates_checkpoints(self) -> "RunSettings":
        if self.evaluate_every is not None and self.evaluate_every % self.checkpoint_every:
            raise ValueError(
                f"evaluate_every = {self.evaluate_every}: checkpoints are what is evaluated; allowed: a multiple of "
                f"checkpoint_every = {self.checkpoint_every}, or null for the last step alone"
            )
        return self

    @field_validator("storage")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise ValueError(
                "must be an absolute path that every node sees (a submitted job's working directory is temporary)"
            )
        return value

    @field_validator("alias")
    @classmethod
    def _not_a_version(cls, value: str) -> str:
        if value == "latest" or re.fullmatch(r"v\d+", value):
            raise ValueError("MLflow keeps `latest` and `v1`, `v2`, … for itself; allowed: another alias")
        if value == CHALLENGER:
            raise ValueError(f"every new version is {CHALLENGER}; allowed: the alias of those that pass the gate")
        return value

    @field_validator("experiment")
    @classmethod
    def _not_a_folder_of_ours(cls, value: str) -> str:
        if value in ("datasets", "fetched", "mlflow-artifacts", "references", "sweeps"):
            raise ValueError("is the name of another folder in run.storage; allowed: another name")
        return value

    @field_validator("tracking_uri")
    @classmethod
    def _well_formed(cls, value: str | None) -> str | None:
        if value is not None:
            check_tracking_uri(value)
        return value


class RunConfig(Config):
    """One training run."""

    data: DataConfig = DataConfig()
    process: ProcessConfig = DdpmProcess()
    objective: ObjectiveConfig = ObjectiveConfig()
    network: NetworkConfig = Field(default=UNetConfig(), discriminator="kind")
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    parallel: ParallelConfig = ParallelConfig()
    run: RunSettings = RunSettings()
    seed: Seed = 0

    @model_validator(mode="after")
    def _parts_fit(self) -> "RunConfig":
        check_objective(self.process, self.objective)
        check_solver(self.process, self.evaluation.solver, "evaluation.solver")
        check_guidance(self.evaluation.guidance, self.network.classes, "evaluation.guidance")
        check_metrics(self.process, self.evaluation.metrics)
        if self.parallel.deepspeed.activation_checkpointing and self.network.kind == "mlp":
            raise ValueError(
                "parallel.deepspeed.activation_checkpointing = True; allowed: with network.kind unet or dit"
            )
        if self.parallel.channels_last and self.network.kind != "unet":
            raise ValueError("parallel.channels_last = True; allowed: with network.kind unet, which is convolutions")
        if self.parallel.most_workers > self.training.global_batch_size:
            raise ValueError(
                f"parallel.workers = {self.parallel.most_workers}; allowed: at most training.global_batch_size = "
                f"{self.training.global_batch_size}"
            )
        return self

    def canonical_json(self) -> str:
        """The one spelling of this configuration: sorted keys, no spaces."""
        return canonical(self.model_dump(mode="json"))

    @property
    def config_sha256(self) -> str:
        """SHA-256 of everything."""
        return _sha256(self.canonical_json())

    @property
    def method_sha256(self) -> str:
        """SHA-256 of what decides the result: all but `parallel`, `run` and `training.steps`."""
        values = self.model_dump(mode="json", exclude={"parallel": True, "run": True, "training": {"steps"}})
        return _sha256(canonical(values))


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


TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


def check_tracking_uri(uri: str) -> None:
    """Refuse a tracking URI that no server or database could stand behind.

    Raises:
        ValueError: naming what is allowed.
    """
    try:
        parts = urlsplit(uri)
        well_formed = parts.port is None or parts.port > 0
    except ValueError:  # a port that is no number, or out of range
        parts, well_formed = urlsplit(""), False
    dialect, rest = parts.scheme.partition("+")[0], uri.partition("://")[2]
    if parts.password:
        raise ValueError(
            "holds a password, which would be recorded with the run; allowed: MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD for a server, the database client's own password file for a database"
        )
    well_formed &= dialect in TRACKING_SCHEMES and bool(rest) and not re.search(r"\s", uri)
    if not well_formed or (dialect in ("http", "https") and not parts.hostname):
        raise ValueError(
            f"not a tracking URI; allowed: http(s)://host[:port], or a database URL ({', '.join(TRACKING_SCHEMES[2:])}://…)"
        )


def canonical(values: Any) -> str:  # noqa: ANN401 - any JSON value
    """Canonical JSON: sorted keys, no white space."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
