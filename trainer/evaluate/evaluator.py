"""Computes the blocks of an evaluation with one loaded package.

All draws are keyed by (seed, image).
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.config import Autoguidance, ClassifierFree
from diffusion.config.solver import limit_nfe
from diffusion.denoiser import Denoiser
from diffusion.device import CPU, network_on
from diffusion.images import to_pixels
from diffusion.package import load_package
from diffusion.solvers import ImageNoise, autoguided, solve
from trainer.config.evaluation import EvaluationConfig
from trainer.data.dataset import Dataset
from trainer.evaluate.blocks import Block
from trainer.evaluate.likelihood.scorer import Likelihoods


class BlockEvaluator:
    """Computes blocks with one loaded package.

    A model with classes is given labels: samples have the class frequencies of the training images (`spread_labels`).
    """

    def __init__(self, package: Path, config: EvaluationConfig, data: Dataset, device: torch.device = CPU) -> None:
        """Verify and load the package; its network is evaluated on `device`, everything else on the CPU."""
        loaded, self.package = load_package(package)
        self.denoiser, self.device = network_on(loaded, device), device
        self.config, self.data = config, data

    def compute(self, block: Block) -> dict[str, Tensor]:
        """The tensors of a block: `pixels` uint8 [n, H, W, C], or each term of a likelihood, float64 [n, ...]."""
        match block.kind:
            case "samples":
                return {"pixels": torch.from_numpy(self.samples(block.seed, block.items, block.nfe))}
            case "vlb":
                return asdict(self.likelihoods.vlb(block.items))
            case "continuous_vlb":
                return asdict(self.likelihoods.continuous_vlb(block.items))
            case "nll":
                nll, evaluations = self.likelihoods.nll(block.items)
                return {"nll": nll, "evaluations": evaluations}
            case "denoising":
                return self.likelihoods.denoising(block.items)

    def keep(self, blocks: Sequence[Block], folder: Path) -> None:
        """Compute blocks, and write each to `folder`."""
        with torch.inference_mode():
            for block in blocks:
                block.save(folder, self.compute(block))

    def samples(self, seed: int, numbers: Sequence[int], nfe: int = 0) -> NDArray[np.uint8]:
        """The samples of a seed with these numbers, quantised to 8 bits, [n, H, W, C].

        With at most `nfe` network evaluations each; 0 for the solver as configured.
        """
        solver = limit_nfe(self.config.solver, nfe) if nfe else self.config.solver
        noise = ImageNoise(seed, numbers, self.package.image_shape)
        denoiser, guidance = self.guided
        label = None
        if self.package.network.classes:
            label = torch.from_numpy(spread_labels(self.data.labels("train"), numbers))
        return to_pixels(solve(denoiser, noise, solver, label, guidance))

    @cached_property
    def likelihoods(self) -> Likelihoods:
        """The likelihoods of the model without guidance: a guided model has none."""
        return Likelihoods(self.denoiser, self.config, self.data)

    @cached_property
    def guided(self) -> tuple[Denoiser, ClassifierFree | None]:
        """The denoiser, autoguided if configured, and the classifier-free guidance, None without."""
        guidance = self.config.guidance
        if isinstance(guidance, Autoguidance):
            guide = network_on(load_package(Path(guidance.guide))[0], self.device)
            return autoguided(self.denoiser, guide, guidance.scale), None
        return self.denoiser, guidance


def spread_labels(labels: NDArray[np.int64], numbers: Sequence[int]) -> NDArray[np.int64]:
    """The labels of the samples with these numbers: among any run of numbers, classes are as frequent as in `labels`.

    Sample i has the label at i / golden ratio (mod 1) of the sorted labels, a sequence whose discrepancy falls as
    log(n) / n; the order that the data happen to be in does not matter.
    """
    places = np.asarray(numbers, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    return np.sort(labels)[(places * np.uint64(len(labels)) >> np.uint64(32)).astype(np.int64)]
