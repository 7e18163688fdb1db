"""A data set as workers see it: uint8 arrays on the run's storage, mapped rather than read, with a fingerprint.

storage/datasets/<fingerprint>/{train,heldout}_{images,labels}.npy and dataset.json, which is written last.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.config import DataConfig
from trainer.data.sources import Images, load_source
from trainer.settings import InputError

SPLITS = ("train", "heldout")
FORMAT_VERSION = 1


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says.

    Attributes:
        source: the configured source.
        fingerprint: SHA-256 over both splits' images and labels.
        image_shape: (C, H, W).
        train: number of training images.
        heldout: number of held-out images.
        classes: number of classes, 0 where there are no labels.
        format_version: of the folder.
    """

    source: str
    fingerprint: str
    image_shape: tuple[int, int, int]
    train: int
    heldout: int
    classes: int
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Dataset:
    """A prepared data set."""

    folder: Path
    info: DatasetInfo

    def images(self, split: str) -> NDArray[np.uint8]:
        """A split's images, uint8 [N, H, W, C], memory-mapped."""
        return np.load(self.folder / f"{split}_images.npy", mmap_mode="r")

    def labels(self, split: str) -> NDArray[np.int64]:
        """A split's labels, int64 [N]; -1 where there are none."""
        return np.load(self.folder / f"{split}_labels.npy")


def open_dataset(folder: Path) -> Dataset:
    """A prepared folder."""
    values = json.loads((folder / "dataset.json").read_text())
    return Dataset(folder, DatasetInfo(**{**values, "image_shape": tuple(values["image_shape"])}))


def prepare(config: DataConfig, storage: Path) -> Dataset:
    """Load, split and store the configured source, unless its folder is there already.

    Raises:
        trainer.settings.InputError: the source is not there or is not images.
    """
    splits = split_images(load_source(config.source), config)
    fingerprint = _fingerprint(splits)
    folder = storage / "datasets" / fingerprint[:16]
    if not (folder / "dataset.json").is_file():
        _write(folder, config.source, fingerprint, splits)
    dataset = open_dataset(folder)
    return replace(dataset, info=replace(dataset.info, source=config.source))


def split_images(data: Images, config: DataConfig) -> dict[str, Images]:
    """The seeded split, stratified by label where there are labels; order within a split is the source's.

    Raises:
        InputError: a fraction that leaves a split, or a class of it, empty.
    """
    from sklearn.model_selection import train_test_split

    stratify = data.labels if data.classes else None
    try:
        train, heldout = train_test_split(
            np.arange(len(data.pixels)),
            test_size=config.heldout_fraction,
            random_state=config.split_seed % 2**32,
            stratify=stratify,
        )
    except ValueError as error:
        raise InputError(
            f"data.heldout_fraction = {config.heldout_fraction}: {len(data.pixels)} images: {error}"
        ) from None
    return {name: data.take(np.sort(rows)) for name, rows in zip(SPLITS, (train, heldout), strict=True)}


def _fingerprint(splits: dict[str, Images]) -> str:
    digest = hashlib.sha256()
    for name in SPLITS:
        images = splits[name]
        digest.update(f"{name} {images.pixels.shape}".encode())
        digest.update(np.ascontiguousarray(images.pixels).tobytes())
        digest.update(images.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _write(folder: Path, source: str, fingerprint: str, splits: dict[str, Images]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    for name, images in splits.items():
        np.save(made / f"{name}_images.npy", images.pixels)
        np.save(made / f"{name}_labels.npy", images.labels)
    height, width, channels = splits["train"].pixels.shape[1:]
    info = DatasetInfo(
        source=source,
        fingerprint=fingerprint,
        image_shape=(channels, height, width),
        train=len(splits["train"].pixels),
        heldout=len(splits["heldout"].pixels),
        classes=splits["train"].classes,
    )
    if folder.is_dir() and not (folder / "dataset.json").is_file():
        shutil.rmtree(folder)
    (made / "dataset.json").write_text(json.dumps(asdict(info), indent=2) + "\n")
    made.chmod(0o755)
    try:
        made.rename(folder)
    except OSError:  # another run has just made the same folder, and its workers may have it mapped
        shutil.rmtree(made)
