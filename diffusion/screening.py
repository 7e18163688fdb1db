"""What one measured curve of denoising error says of other noise schedules, before anything is trained with them.

    mse(log_snr) = E ||eps - eps_theta(x_t)||^2, summed over dimensions

is a function of the network and of log-SNR alone: a variance-exploding x_t is a scaled variance-preserving one.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CURVE_FILE = "denoising.json"
ARRAYS = ("log_snr", "mse", "clipped_mse", "reconstruction")


@dataclass(frozen=True, eq=False)
class DenoisingCurve:
    """A network's squared error on held-out images over log-SNR, float64.

    Attributes:
        log_snr: [G], G >= 2, falling: from near data to near noise.
        mse: mean of ||eps - eps_theta||^2 over the images of each of K >= 2 groups, [K, G].
        clipped_mse: likewise, of the x_0 that a sampler holds within [-1, 1]: e^log_snr ||x_0 - clip(x_theta)||^2, the
            same error where nothing is clipped. The discrete bound is that of the clipped chain, the continuous is not.
        reconstruction: mean of -log p(x_0 | z) in nats with p(x_0 | z) proportional to q(z | x_0), [G]; no network.
        second_moment: mean of ||x_0||^2.
        dimensions: of an image.
        images: how many were measured.
        package_sha256: the network's package.
        dataset_fingerprint: of the images.

    Raises:
        ValueError: an array of another shape, or with values that are no such errors.
    """

    log_snr: Floats
    mse: Floats
    clipped_mse: Floats
    reconstruction: Floats
    second_moment: float
    dimensions: int
    images: int
    package_sha256: str
    dataset_fingerprint: str

    def __post_init__(self) -> None:
        self._check_shapes()
        for name in ARRAYS:
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name}: NaN or infinity; allowed: finite numbers")
        if not (np.diff(self.log_snr) < 0).all():
            raise ValueError("log_snr: allowed: falling, each below the one before")
        for name in ("mse", "clipped_mse"):
            if not (getattr(self, name) > 0).all():
                raise ValueError(f"{name}: {getattr(self, name).min():g}; allowed: above 0, as a squared error is")
        if not (self.reconstruction >= 0).all():
            raise ValueError(f"reconstruction: {self.reconstruction.min():g}; allowed: at least 0, levels have mass")
        if not (np.isfinite(self.second_moment) and self.second_moment >= 0 and self.dimensions > 0 < self.images):
            raise ValueError(
                f"second_moment = {self.second_moment}, dimensions = {self.dimensions}, images = {self.images}; "
                "allowed: a mean square, and counts of at least 1"
            )

    def _check_shapes(self) -> None:
        points, groups = len(self.log_snr), len(self.mse)
        if self.log_snr.shape != (points,) or points < 2 or groups < 2:
            raise ValueError(f"log_snr, mse: {points} points, {groups} groups; allowed: at least 2 of each")
        shapes = {"mse": (groups, points), "clipped_mse": (groups, points), "reconstruction": (points,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name}: shape {getattr(self, name).shape}; allowed: {shape}")

    @property
    def range(self) -> tuple[float, float]:
        """The highest log-SNR and the lowest."""
        return float(self.log_snr[0]), float(self.log_snr[-1])

    def save(self, path: Path) -> None:
        """Write it as JSON; floats come back to the last bit."""
        values = {name: value.tolist() if name in ARRAYS else value for name, value in asdict(self).items()}
        path.write_text(json.dumps(values) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds something else.
            OSError: it cannot be read.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            arrays = {name: np.array(values[name], dtype=np.float64) for name in ARRAYS}
            rest = {field.name: values[field.name] for field in fields(cls) if field.name not in ARRAYS}
            return cls(**arrays, **rest)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: no curve of denoising errors: {error!s}; allowed: a {CURVE_FILE}") from None
