"""One network's denoising error against log-SNR, and what follows from it for other schedules."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ARRAYS = ("log_snr", "mse", "reconstruction")


@dataclass(frozen=True)
class DenoisingCurve:
    """E ||eps - eps_theta(x_t)||^2 of held-out images against log-SNR, by groups of images.

    Attributes:
        log_snr: descending, float64 [G].
        mse: means over the images of each group, summed over dimensions, float64 [K, G].
        second_moment: mean of ||x_0||^2.
        reconstruction: mean of -log p(x_0 | x_t) by the channel, nats, float64 [G]; no network takes part.
        dimensions: of an image.
        package_sha256: the model.
        dataset_fingerprint: the data.
        images: how many.
    """

    log_snr: Tensor
    mse: Tensor
    second_moment: float
    reconstruction: Tensor
    dimensions: int
    package_sha256: str
    dataset_fingerprint: str
    images: int

    def to_json(self) -> str:
        """The text of `denoising.json`."""
        values = vars(self) | {name: getattr(self, name).tolist() for name in ARRAYS}
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DenoisingCurve":
        """Of `denoising.json`."""
        values: dict[str, Any] = json.loads(text)
        for name in ARRAYS:
            values[name] = torch.tensor(values[name], dtype=torch.float64)
        return cls(**values)
