"""A small classifier whose features define `frechet_classifier`: trained on the training split, seeded, with a digest.

Features are the 64 activations before the last layer, from 8-bit images mapped to [-1, 1]. One seed and one data set
give one extractor on one machine, and it is kept beside the references; its digest says which extractor a number
belongs to.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion import durable
from diffusion.images import to_model_range
from trainer.data.dataset import Dataset
from trainer.evaluate.extractors.base import check_pixels, in_batches
from trainer.evaluate.extractors.dimensions import FEATURES

EPOCHS, BATCH, LEARNING_RATE = 20, 64, 2e-3
SCORED = 128


class Classifier(nn.Module):
    """Two convolutions, pooling to 4 x 4, and two linear layers."""

    def __init__(self, channels: int, classes: int) -> None:
        """For images of any size with `channels` channels."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(32 * 16, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits [N, classes] of x [N, C, H, W] in [-1, 1]."""
        return self.head(self.features(x))


@dataclass(frozen=True)
class ClassifierExtractor:
    """A trained classifier as a feature extractor.

    Attributes:
        network: the classifier, in evaluation mode.
        sha256: digest of its weights.
    """

    network: Classifier
    sha256: str
    name: str = "classifier"
    dimensions: int = FEATURES

    def features(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Features of 8-bit images [N, H, W, C], float64 [N, FEATURES]."""
        check_pixels(pixels)
        return in_batches(self.network.features, to_model_range(pixels), SCORED)

    def predicted(self, features: Tensor) -> NDArray[np.int64]:
        """The class of each image, from its features [N, FEATURES]; int64 [N]."""
        with torch.inference_mode():
            return self.network.head(features.float()).argmax(1).numpy()

    @property
    def classes(self) -> int:
        """Number of classes that are told apart."""
        return self.network.head.out_features

    def accuracy(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        """Fraction of images classified rightly."""
        return float((self.predicted(self.features(pixels)) == labels).mean())


def train_extractor(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], classes: int, seed: int
) -> ClassifierExtractor:
    """Train on images [N, H, W, C] with labels 0..classes - 1; the global random state is left as it was."""
    x, y = to_model_range(pixels), torch.from_numpy(labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Classifier(x.shape[1], classes)
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
                optimizer.step()
    return _finished(network)


def _finished(network: Classifier) -> ClassifierExtractor:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return ClassifierExtractor(network.eval(), digest.hexdigest())


def kept_extractor(folder: Path, data: Dataset, seed: int) -> ClassifierExtractor:
    """The extractor of a data set and a seed: read from the folder, or trained and kept there."""
    file = folder / f"classifier-{data.info.content[:16]}-{seed}.safetensors"
    network = Classifier(data.info.image_shape[0], data.info.classes)
    try:
        network.load_state_dict(load_file(file))
        return _finished(network)
    except (FileNotFoundError, SafetensorError, RuntimeError):  # not there, spoilt, or of another shape
        pass
    extractor = train_extractor(data.images("train")[:], data.labels("train"), data.info.classes, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with durable.replacing(file) as temporary:
        save_file(extractor.network.state_dict(), temporary)
    return extractor
