"""Statistics of images that others have published: a mean and a covariance of features, as the FID literature has them.

The layout is that of the first implementation (Heusel et al. 2017) and of most since: an .npz with `mu` [d] and `sigma`
[d, d]. A distance to them stands beside numbers in papers if the extractor is theirs too; its digest goes along with
every score.
"""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusion.frechet import FrechetReference
from trainer.config.evaluation import EvaluationConfig, ExtractorName
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError
from trainer.evaluate.extractors.dimensions import dimensions, extractors_of

MAX_BYTES = 2**30  # that a file expands to: the covariance of 8,192 features has half of it
ASYMMETRY = 1e-4  # of the largest entry: published covariances are of float32 sums


@dataclass(frozen=True)
class Published:
    """Published statistics.

    Attributes:
        reference: the Gaussian with this mean and covariance.
        sha256: of the file.
    """

    reference: FrechetReference
    sha256: str

    @property
    def dimensions(self) -> int:
        """How many features they are of."""
        return len(self.reference.mean)


def load_published(file: Path) -> Published:
    """Read an .npz of `mu` and `sigma`.

    Raises:
        ValueError: it is not one, or its covariance is none.
    """
    try:
        content = file.read_bytes()
        with zipfile.ZipFile(file) as packed:
            used = (each for each in packed.infolist() if each.filename.removesuffix(".npy") in ("mu", "sigma"))
            if (size := sum(each.file_size for each in used)) > MAX_BYTES:
                raise ValueError(f"expands to {size} bytes; allowed: at most {MAX_BYTES}")
        with np.load(file, allow_pickle=False) as arrays:
            mean, covariance = (np.asarray(arrays[name], dtype=np.float64) for name in ("mu", "sigma"))
    except KeyError as error:
        raise ValueError(f"{file}: has no {error.args[0].split()[0]}; allowed: an .npz with mu and sigma") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file}: not an .npz with mu and sigma: {' '.join(str(error).split())[:200]}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        raise ValueError(f"{file}: mu is {mean.shape}, sigma {covariance.shape}; allowed: [d] and [d, d]")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{file}: holds NaN or infinity")
    if (
        np.abs(covariance - covariance.T).max() > ASYMMETRY * np.abs(covariance).max()
        or covariance.diagonal().min() < 0
    ):
        raise ValueError(f"{file}: sigma is not a covariance: it is not symmetric, or a variance is negative")
    symmetric = torch.from_numpy((covariance + covariance.T) / 2)
    reference = FrechetReference.of_statistics(torch.from_numpy(mean), symmetric)
    return Published(reference, hashlib.sha256(content).hexdigest())


def owner(config: EvaluationConfig, info: DatasetInfo, count: int) -> ExtractorName | None:
    """The extractor whose features published statistics of so many dimensions are of; None if none has as many."""
    names = extractors_of(config, info.classes)
    return next((name for name in names if dimensions(name, info.image_shape) == count), None)


def check_published(config: EvaluationConfig, info: DatasetInfo) -> None:
    """Refuse published statistics that cannot be read, or that no extractor of the evaluation has features for.

    Raises:
        InputError: naming the setting.
    """
    if config.reference is None or "frechet" not in config.metrics:
        return
    try:
        found = load_published(Path(config.reference))
    except ValueError as error:
        raise InputError(f"evaluation.reference: {error}") from None
    if owner(config, info, found.dimensions) is None:
        names = extractors_of(config, info.classes)
        sizes = ", ".join(f"{name} has {dimensions(name, info.image_shape)}" for name in names) or "there is none"
        raise InputError(
            f"evaluation.reference = {config.reference!r}: statistics of {found.dimensions} features; allowed: those "
            f"of an extractor of the evaluation ({sizes})"
        )
