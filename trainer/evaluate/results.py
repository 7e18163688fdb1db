"""The blocks of an evaluation, read back and concatenated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.likelihood.bound import Vlb
from trainer.config.evaluation import EvaluationConfig
from trainer.evaluate.blocks import Block, Kind, SampleSet
from trainer.evaluate.extractors.base import FeatureExtractor, feature_key
from trainer.evaluate.metrics.sample_features import SampleFeatures

PER_IMAGE = "heldout.safetensors"
"""File of the nats of each held-out image, float64 [N] by likelihood."""


@dataclass(frozen=True)
class EvaluationResults:
    """The stored blocks of an evaluation.

    Attributes:
        folder: folder of the block files.
        blocks: all blocks except those of features.
        config: settings of the evaluation.
    """

    folder: Path
    blocks: Sequence[Block]
    config: EvaluationConfig

    def joined(self, kind: Kind, field: str) -> Tensor:
        """A tensor of the blocks of a kind, concatenated over all held-out images: [N, ...]."""
        return self._joined((block for block in self.blocks if block.kind == kind), field)

    def bound(self, kind: Kind) -> Vlb:
        """The terms of a bound for all held-out images, nats, float64 [N] each."""
        return Vlb(*(self.joined(kind, term) for term in ("prior", "diffusion", "reconstruction")))

    def samples(self, sample_set: SampleSet) -> NDArray[np.uint8]:
        """The samples of a set, uint8 [N, H, W, C]."""
        return self._joined(sample_set.blocks(self.config.samples), "pixels").numpy()

    def features(self, sample_set: SampleSet, extractor: FeatureExtractor) -> SampleFeatures:
        """The features of a set of samples, float32 [N, d], read block by block on demand."""
        count, key = self.config.samples, feature_key(extractor)
        return SampleFeatures(count, lambda: self._parts(sample_set.blocks(count, key), "features"))

    def _joined(self, blocks: Iterator[Block], field: str) -> Tensor:
        return torch.cat(list(self._parts(blocks, field)))

    def _parts(self, blocks: Iterator[Block], field: str) -> Iterator[Tensor]:
        for block in blocks:
            part = block.load(self.folder)
            if part is None:
                raise RuntimeError(f"{block.file(self.folder)}: missing, though it was written")
            yield part[field]
