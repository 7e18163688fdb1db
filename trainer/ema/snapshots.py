"""Snapshots of the EMA's tracks, and any other average made of them once training is over.

A snapshot is a checkpoint of the two tracks alone, in the run's `ema` folder. Which are kept is a function of the step
alone, 16 to 31 of them evenly spaced, so a run that was broken off has those of one that was not. The mathematics is
that of diffusion/ema.py (Karras et al. 2024, section 3.2).
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.ema import gamma_from_sigma_rel, posthoc_weights, reconstruction_error
from trainer.checkpoint.manifest import MANIFEST, CheckpointError, complete_steps, step_folder
from trainer.checkpoint.reader import Checkpoint
from trainer.config.training import EmaConfig
from trainer.ema.sharded import EMA_KINDS

MOST = 32


def interval(step: int, every: int) -> int:
    """Steps between the snapshots kept at `step`: the smallest every 2^k with fewer than 32 multiples up to there."""
    spacing = every
    while step // spacing >= MOST:
        spacing *= 2
    return spacing


def prune(folder: Path, step: int, every: int) -> None:
    """Remove the snapshots that are not kept at `step`, each manifest first."""
    spacing = interval(step, every)
    _remove(folder, [other for other in complete_steps(folder) if other % spacing])


def forget(folder: Path, step: int) -> None:
    """Remove the snapshots after `step`, of weights that were given up."""
    _remove(folder, [other for other in complete_steps(folder) if other > step])


def _remove(folder: Path, steps: list[int]) -> None:
    for step in steps:
        doomed = step_folder(folder, step)
        (doomed / MANIFEST).unlink()
        shutil.rmtree(doomed, ignore_errors=True)


@dataclass(frozen=True)
class Averages:
    """What an average at one step can be made of.

    Attributes:
        sources: checkpoints of the tracks, the last one of the step at hand.
        sigma_rels: the tracks' widths.
        refused: why others were left out.
    """

    sources: list[Checkpoint]
    sigma_rels: tuple[float, float]
    refused: list[str]

    @property
    def step(self) -> int:
        """The step of the averages."""
        return self.sources[-1].step

    def error(self, sigma_rel: float) -> float:
        """The relative L2 distance of the profile that is made from the one that is wanted; 0 for a track's own."""
        if sigma_rel in self.sigma_rels:
            return 0.0
        steps, gammas = self._layout()
        gamma = gamma_from_sigma_rel(sigma_rel)
        return reconstruction_error(self._weights(sigma_rel), steps, gammas, self.step, gamma)

    def tensors(self, sigma_rel: float) -> dict[str, Tensor]:
        """The average of width `sigma_rel` of every parameter, float32; a track's own is read, not made."""
        if sigma_rel in self.sigma_rels:
            return self.sources[-1].tensors(EMA_KINDS[self.sigma_rels.index(sigma_rel)])
        weights = self._weights(sigma_rel)
        return {name: self._combined(name, weights) for name in self.sources[-1].shapes}

    def _combined(self, name: str, weights: NDArray[np.float64]) -> Tensor:
        total = torch.zeros(self.sources[-1].shapes[name], dtype=torch.float64)
        for weight, (source, kind) in zip(weights, self._terms(), strict=True):
            total += float(weight) * source.tensor(kind, name).double()
        return total.float()

    def _weights(self, sigma_rel: float) -> NDArray[np.float64]:
        steps, gammas = self._layout()
        return posthoc_weights(steps, gammas, self.step, gamma_from_sigma_rel(sigma_rel))

    def _terms(self) -> Iterator[tuple[Checkpoint, str]]:
        return ((source, kind) for source in self.sources for kind in EMA_KINDS)

    def _layout(self) -> tuple[list[int], list[float]]:
        gammas = [gamma_from_sigma_rel(sigma_rel) for sigma_rel in self.sigma_rels]
        return [source.step for source, _ in self._terms()], gammas * len(self.sources)


def averages(folder: Path, config: EmaConfig, target: Checkpoint) -> Averages:
    """The snapshots before a checkpoint, and the checkpoint's own tracks.

    Args:
        folder: of the snapshots.
        config: the run's.
        target: a checkpoint or a snapshot, verified.
    """
    sources, refused = list[Checkpoint](), list[str]()
    for step in complete_steps(folder):
        if step >= target.step:
            break
        try:
            source = Checkpoint(step_folder(folder, step))
            source.verify()
        except CheckpointError as error:
            refused.append(str(error))
        else:
            sources.append(source)
    return Averages([*sources, target], config.tracks, refused)
