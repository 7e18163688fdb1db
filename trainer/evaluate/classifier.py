"""A small classifier whose features define `frechet_classifier`: trained on the training split, seeded, with a digest.

Features are the 64 activations before the last layer, from 8-bit images mapped to [-1, 1]. One seed and one data set
give one extractor on one machine; its digest says which extractor a number belongs to.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion.images import to_model_range
from trainer.evaluate.sizes import FEATURES

EPOCHS, BATCH, LEARNING_RATE = 20, 64, 2e-3


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
class Extractor:
    """A trained classifier as a feature extractor.

    Attributes:
        network: the classifier, in evaluation mode.
        sha256: digest of its weights.
    """

    network: Classifier
    sha256: str

    def features(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Features of 8-bit images [N, H, W, C], float64 [N, FEATURES]."""
        with torch.inference_mode():
            parts = [self.network.features(x) for x in to_model_range(pixels).split(512)]
        return torch.cat(parts).to(torch.float64)

    def accuracy(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        """Fraction of images classified rightly."""
        with torch.inference_mode():
            predicted = self.network(to_model_range(pixels)).argmax(1).numpy()
        return float((predicted == labels).mean())


def train_extractor(pixels: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> Extractor:
    """Train on labelled images [N, H, W, C]; the global random state is left as it was."""
    x, y = to_model_range(pixels), torch.from_numpy(labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Classifier(x.shape[1], int(labels.max()) + 1)
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
                optimizer.step()
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return Extractor(network.eval(), digest.hexdigest())
