"""Statistics of images that others have published: a mean and a covariance of features, as the FID literature has them.

The layout is that of the first implementation (Heusel et al. 2017) and of most since: an .npz with `mu` [d] and `sigma`
[d, d]. A distance to them stands beside numbers in papers if the extractor is theirs too; its digest goes along with
every score.
"""

import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from diffusion.frechet import FrechetReference
from trainer.config.evaluation import EvaluationConfig, ExtractorName
from trainer.data.arrays import UNREADABLE
from trainer.data.cache import file_sha256
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError, one_line
from trainer.evaluate.extractors.dimensions import DIMENSIONS, MAX_PIXEL_FEATURES, dimensions, extractors_of
from trainer.runtime.memory import at_most

MAX_FILE_BYTES = 2**36  # which may hold images too
MAX_BYTES = 2**30  # that reading it takes
MAX_DIMENSIONS = max(*DIMENSIONS.values(), MAX_PIXEL_FEATURES)
ENCRYPTED = 1  # in the flags of an archive's file
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
        _check_file(file)
        with at_most(MAX_BYTES), zipfile.ZipFile(file) as packed:
            mean, covariance = (_array(packed, name) for name in ("mu", "sigma"))
        digest = file_sha256(file)
    except MemoryError:
        raise ValueError(f"{file}: takes more than {MAX_BYTES >> 30} GiB; allowed: an .npz with mu and sigma") from None
    except (*UNREADABLE, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file}: not an .npz with mu and sigma: {one_line(error)}") from None
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
    return Published(reference, digest)


def _check_file(file: Path) -> None:
    """Raise OSError or ValueError for what is no file, or far larger than files of statistics and their images."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        raise ValueError(f"{status.st_size} bytes; allowed: a file of at most {MAX_FILE_BYTES}")


def _array(packed: zipfile.ZipFile, name: str) -> NDArray[np.float64]:
    """An array of the archive, of which the header is read first.

    Raises:
        ValueError: it is not there, not packed as NumPy does, of another type, or larger than any extractor's.
    """
    there = packed.NameToInfo
    info = there.get(name) or there.get(f"{name}.npy")
    if info is None:
        raise ValueError(f"has no {name}")
    if info.flag_bits & ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is encrypted or packed in another way; allowed: as np.savez_compressed packs it")
    with packed.open(info) as stream:
        if npy.read_magic(stream) != (1, 0):  # of which a header has 64 KiB at most
            raise ValueError(f"{name} is not as np.savez writes it")
        shape, _, dtype = npy.read_array_header_1_0(stream)
    if dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise ValueError(f"{name} is {dtype}; allowed: float32 or float64")
    if len(shape) > 2 or max(shape, default=0) > MAX_DIMENSIONS:
        raise ValueError(f"{name} is {shape}; allowed: [d] and [d, d] with d at most {MAX_DIMENSIONS}, an extractor's")
    with packed.open(info) as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False), dtype=np.float64)


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
