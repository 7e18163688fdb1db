"""The evaluation of a package as Ray tasks, and the files it leaves in a results folder."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusion.bound import Vlb
from diffusion.config import Autoguidance
from diffusion.images import grid
from diffusion.likelihood import bits_per_dim
from diffusion.ode_likelihood import dequantised_bits_per_dim
from diffusion.package import verify_package
from trainer.config import EvaluationConfig, canonical
from trainer.data.dataset import Dataset
from trainer.evaluate import tasks
from trainer.evaluate.blocks import Block, Kind, blocks_of
from trainer.evaluate.classifier import Extractor
from trainer.evaluate.frechet import frechet_table

GRID_IMAGES = 64
# which blocks there are, and not what is in them
EXTENT = {"metrics", "seeds", "samples"}


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how the work is spread.

    Attributes:
        package: the model.
        network: the kind of its network, whose imports tasks begin with.
        data: whose held-out images are scored, and whose training images samples are compared with.
        config: what is measured.
        results: the folder for samples, pictures and, while they are needed, blocks.
        tasks: at most so many at a time.
        cpus: for each.
    """

    package: Path
    network: str
    data: Dataset
    config: EvaluationConfig
    results: Path
    tasks: int
    cpus: float

    @property
    def blocks(self) -> Path:
        """Where blocks are kept: a folder for each package, data set and way to measure, so that they never mix."""
        guidance = self.config.guidance
        identity = {
            "package": verify_package(self.package),
            "guide": verify_package(Path(guidance.guide)) if isinstance(guidance, Autoguidance) else None,
            "data": self.data.info.fingerprint,
            "config": self.config.model_dump(mode="json", exclude=EXTENT),
        }
        return self.results / "blocks" / hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]

    def run(self) -> dict[str, Any]:
        """Compute what is not kept yet, and put it together; writes samples.npy and samples.png.

        Returns:
            Metrics by the names of the house, and what they were measured with.
        """
        folder = self.blocks
        folder.mkdir(parents=True, exist_ok=True)
        blocks = blocks_of(self.config, self.data.info.heldout)
        wants_classifier = "frechet" in self.config.metrics and self.data.info.classes > 0
        extractor = self._task(tasks.extractor, self.config.classifier_seed) if wants_classifier else None
        left = [block for block in blocks if block.load(folder) is None]
        count = min(self.tasks, len(left))
        shares = [left[index::count] for index in range(count)]
        known = (max(1, int(self.cpus)), self.config.model_dump_json(), self.package, folder)
        ray.get([self._task(tasks.blocks, *known, share) for share in shares])
        return self._metrics(Found(folder, blocks), ray.get(extractor) if extractor else None)

    def _task(self, function: Any, *arguments: Any) -> Any:  # noqa: ANN401 - a Ray task of any function
        remote = ray.remote(num_cpus=self.cpus)(function)
        return remote.remote(self.network, self.data.folder, *arguments)

    def _metrics(self, found: "Found", extractor: Extractor | None) -> dict[str, Any]:
        dimensions, seeds = int(np.prod(self.data.info.image_shape)), self.config.seeds
        metrics: dict[str, Any] = {}
        for kind in ("vlb", "continuous_vlb"):
            if kind in self.config.metrics:
                metrics |= bound_metrics(kind, found.bound(kind), dimensions)
        if "nll" in self.config.metrics:
            metrics |= mean_and_error("nll_bpd", dequantised_bits_per_dim(found.joined("nll", "nll"), dimensions))
            metrics["nll_evaluations"] = float(found.joined("nll", "evaluations").double().mean())
        if "frechet" in self.config.metrics:
            sets = [found.samples(seed) for seed in range(self.config.seed, self.config.seed + seeds)]
            np.save(self.results / "samples.npy", sets[0][..., 0] if sets[0].shape[-1] == 1 else sets[0])
            Image.fromarray(grid(sets[0][:GRID_IMAGES])).save(self.results / "samples.png")
            metrics["samples"] = len(sets[0])
            if extractor is not None:
                metrics |= _frechet_metrics(extractor, self.config, self.data, sets)
        return metrics


@dataclass(frozen=True)
class Found:
    """All blocks of an evaluation, as they are kept."""

    folder: Path
    blocks: list[Block]

    def joined(self, kind: Kind, field: str, seed: int | None = None) -> Tensor:
        """A field over all items of a kind, in their order."""
        chosen = [block for block in self.blocks if block.kind == kind and seed in (None, block.seed)]
        return torch.cat([part[field] for part in self._parts(chosen)])

    def bound(self, kind: Kind) -> Vlb:
        """The terms of a bound, of all held-out images."""
        return Vlb(*(self.joined(kind, term) for term in ("prior", "diffusion", "reconstruction")))

    def samples(self, seed: int) -> NDArray[np.uint8]:
        """The samples of a seed, uint8 [N, H, W, C]."""
        return self.joined("samples", "pixels", seed).numpy()

    def _parts(self, blocks: list[Block]) -> Iterator[dict[str, Tensor]]:
        for block in blocks:
            part = block.load(self.folder)
            if part is None:
                raise RuntimeError(f"{block.file(self.folder)}: gone since it was written")
            yield part


def bound_metrics(name: str, bound: Vlb, dimensions: int) -> dict[str, float]:
    """Mean over images of a bound and of its terms in bits/dim, each with its standard error.

    The standard error is that of the mean over images: it holds both their differences and the noise of the estimate.
    """
    terms = {"": bound.total, "prior_": bound.prior, "diffusion_": bound.diffusion}
    terms["reconstruction_"] = bound.reconstruction
    metrics: dict[str, float] = {}
    for term, nats in terms.items():
        metrics |= mean_and_error(f"{name}_{term}bpd", bits_per_dim(nats, dimensions))
    return metrics


def mean_and_error(name: str, values: Tensor) -> dict[str, float]:
    """The mean of values, one an image, and its standard error."""
    return {name: float(values.mean()), f"{name}_se": float(values.std() / len(values) ** 0.5)}


def _frechet_metrics(
    extractor: Extractor, config: EvaluationConfig, data: Dataset, sets: list[NDArray[np.uint8]]
) -> dict[str, Any]:
    train, heldout = data.images("train")[:], data.images("heldout")[:]
    table = frechet_table(extractor, train, heldout, sets, config.seed)
    spread = {"frechet_classifier_sd": float(np.std(table.samples, ddof=1))} if len(sets) > 1 else {}
    return {
        "frechet_classifier": float(np.mean(table.samples)),
        **spread,
        "frechet_classifier_heldout": table.heldout,
        "frechet_classifier_gaussian": table.gaussian,
        "frechet_classifier_noise": table.noise,
        "classifier": {
            "sha256": extractor.sha256,
            "seed": config.classifier_seed,
            "heldout_accuracy": extractor.accuracy(heldout, data.labels("heldout")),
        },
    }


def report(folder: Path, values: dict[str, Any]) -> Path:
    """Write an evaluation's values as JSON; returns the file."""
    file = folder / "evaluation.json"
    file.write_text(json.dumps(values, indent=2) + "\n")
    return file
