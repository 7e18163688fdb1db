"""What an evaluation has found: its blocks, put together."""

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
"""Nats of each held-out image, by likelihood."""


@dataclass(frozen=True)
class EvaluationResults:
    """All blocks of an evaluation, as they are kept."""

    folder: Path
    blocks: Sequence[Block]
    config: EvaluationConfig

    def joined(self, kind: Kind, field: str) -> Tensor:
        """A field over all held-out images, in their order."""
        return self._joined((block for block in self.blocks if block.kind == kind), field)

    def bound(self, kind: Kind) -> Vlb:
        """The terms of a bound, of all held-out images."""
        return Vlb(*(self.joined(kind, term) for term in ("prior", "diffusion", "reconstruction")))

    def samples(self, which: SampleSet) -> NDArray[np.uint8]:
        """A set of samples, uint8 [N, H, W, C]."""
        return self._joined(which.blocks(self.config.samples), "pixels").numpy()

    def features(self, which: SampleSet, extractor: FeatureExtractor) -> SampleFeatures:
        """A set's features, float32 [N, d], which are read when they are wanted."""
        count, key = self.config.samples, feature_key(extractor)
        return SampleFeatures(count, lambda: self._parts(which.blocks(count, key), "features"))

    def _joined(self, blocks: Iterator[Block], field: str) -> Tensor:
        return torch.cat(list(self._parts(blocks, field)))

    def _parts(self, blocks: Iterator[Block], field: str) -> Iterator[Tensor]:
        for block in blocks:
            part = block.load(self.folder)
            if part is None:
                raise RuntimeError(f"{block.file(self.folder)}: gone since it was written")
            yield part[field]
