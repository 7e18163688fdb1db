"""Snapshots of the EMA tracks, and the averages of other widths that are built from them after training.

A snapshot is a checkpoint of the two tracks alone, in the run's `ema` folder. Which snapshots are kept depends only on
the step (16 to 31 of them, evenly spaced), so an interrupted run keeps the same ones as an uninterrupted run. The
mathematics is that of diffusion/ema.py (Karras et al. 2024, section 3.2).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.ema import gamma_from_sigma_rel, posthoc_weights, reconstruction_error
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.writer import remove
from trainer.config.training import EmaConfig
from trainer.ema.sharded import EMA_KINDS
from trainer.run.manifest import CheckpointError, complete_steps, step_folder

MAX_SNAPSHOTS = 32


def interval(step: int, every: int) -> int:
    """Steps between the snapshots kept at `step`: the smallest `every` 2^k with fewer than 32 multiples there."""
    spacing = every
    while step // spacing >= MAX_SNAPSHOTS:
        spacing *= 2
    return spacing


def prune(folder: Path, step: int, every: int) -> None:
    """Remove the snapshots that are not kept at `step`; each manifest goes first."""
    spacing = interval(step, every)
    _remove(folder, [other for other in complete_steps(folder) if other % spacing])


def forget(folder: Path, step: int) -> None:
    """Remove the snapshots after `step`, whose weights a rollback discarded."""
    _remove(folder, [other for other in complete_steps(folder) if other > step])


def _remove(folder: Path, steps: list[int]) -> None:
    for step in steps:
        remove(step_folder(folder, step))


@dataclass(frozen=True)
class EmaSources:
    """The checkpoints that an average of the weights at one step can be built from.

    Attributes:
        checkpoints: checkpoints that hold the tracks, in ascending order of steps; the last is at the average's step.
        sigma_rels: relative widths of the two tracks.
        refused: one message for each snapshot that failed to verify and is not used.
    """

    checkpoints: list[Checkpoint]
    sigma_rels: tuple[float, float]
    refused: list[str]

    @property
    def step(self) -> int:
        """The training step that the averages end at."""
        return self.checkpoints[-1].step

    def error(self, sigma_rel: float) -> float:
        """Relative L2 distance between the rebuilt EMA profile and the exact one; 0 for a track's own width."""
        if sigma_rel in self.sigma_rels:
            return 0.0
        steps, gammas = self._layout()
        gamma = gamma_from_sigma_rel(sigma_rel)
        return reconstruction_error(self._weights(sigma_rel), steps, gammas, self.step, gamma)

    def tensors(self, sigma_rel: float) -> dict[str, Tensor]:
        """Every parameter's average of width `sigma_rel`, float32, by parameter name.

        A track's own width is read as stored; any other is a weighted sum of snapshots.
        """
        if sigma_rel in self.sigma_rels:
            return self.checkpoints[-1].tensors(EMA_KINDS[self.sigma_rels.index(sigma_rel)])
        weights = self._weights(sigma_rel)
        return {name: self._combined(name, weights) for name in self.checkpoints[-1].shapes}

    def _combined(self, name: str, weights: NDArray[np.float64]) -> Tensor:
        total = torch.zeros(self.checkpoints[-1].shapes[name], dtype=torch.float64)
        for weight, (source, kind) in zip(weights, self._terms(), strict=True):
            total += float(weight) * source.tensor(kind, name).double()
        return total.float()

    def _weights(self, sigma_rel: float) -> NDArray[np.float64]:
        steps, gammas = self._layout()
        return posthoc_weights(steps, gammas, self.step, gamma_from_sigma_rel(sigma_rel))

    def _terms(self) -> Iterator[tuple[Checkpoint, str]]:
        return ((source, kind) for source in self.checkpoints for kind in EMA_KINDS)

    def _layout(self) -> tuple[list[int], list[float]]:
        gammas = [gamma_from_sigma_rel(sigma_rel) for sigma_rel in self.sigma_rels]
        return [source.step for source, _ in self._terms()], gammas * len(self.checkpoints)


def ema_sources(folder: Path, config: EmaConfig, target: Checkpoint) -> EmaSources:
    """The snapshots before a checkpoint, and the checkpoint's own tracks.

    Args:
        folder: folder of the run's snapshots.
        config: the run's EMA settings.
        target: checkpoint or snapshot at whose step the average ends, verified by the caller.
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
    return EmaSources([*sources, target], config.tracks, refused)
