"""Features of the images that samples are compared with, and their moments: computed once and kept in storage.

A folder per (extractor digest, data set fingerprint, set of images) holds `reference.safetensors` and, written last and
so the proof of its wholeness, `reference.json` with that file's digest. Any number of processes may compute the same:
the last one's files stay, and they are the same. What cannot be verified is computed anew.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from diffusion import durable
from diffusion.frechet import Moments
from diffusion.json_text import json_text
from trainer.data.dataset import Dataset
from trainer.evaluate.extractors.base import FeatureExtractor, Images, feature_blocks
from trainer.evaluate.references.baselines import image_set, spread
from trainer.files import read_json

FORMAT_VERSION = 1
ARRAYS, RECORD = "reference.safetensors", "reference.json"


@dataclass(frozen=True)
class Reference:
    """What scores compare with.

    Attributes:
        moments: of all the images.
        features: float32 [n, d] of `rows`, for the scores that need neighbours or kernels.
        rows: which images these are, spread over the set; int64 [n].
    """

    moments: Moments
    features: Tensor
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class ReferenceCache:
    """References below one folder.

    Attributes:
        folder: in storage that every evaluation sees.
        kept: how many images' features are kept; moments are of all.
    """

    folder: Path
    kept: int = 50_000

    def get(self, data: Dataset, name: str, extractor: FeatureExtractor) -> Reference:
        """The reference of a set of images (`baselines.image_set`), read or computed."""
        fingerprint = data.info.content
        identity = {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "set": name,
            "extractor": extractor.name,
            "extractor_sha256": extractor.sha256,
            "dimensions": extractor.dimensions,
            "kept": self.kept,
        }
        folder = self.folder / f"{extractor.name}-{extractor.sha256[:16]}" / f"{fingerprint[:16]}-{name}"
        found = _read(folder, identity)
        if found is None:
            found = _compute(extractor, image_set(data, name), self.kept)
            _write(folder, identity, found)
        return found


def _compute(extractor: FeatureExtractor, images: Images, kept: int) -> Reference:
    moments, features, so_far, rows = Moments.none(extractor.dimensions), list[Tensor](), 0, spread(len(images), kept)
    for block in feature_blocks(extractor, images):
        moments += Moments.of(block)
        here = rows[(rows >= so_far) & (rows < so_far + len(block))] - so_far
        features.append(block[torch.from_numpy(here)].float())
        so_far += len(block)
    return Reference(moments, torch.cat(features), rows)


def _write(folder: Path, identity: dict[str, Any], reference: Reference) -> None:
    moments = reference.moments
    content = save({"total": moments.total, "outer": moments.outer, "features": reference.features})
    record = identity | {"images": moments.count, "sha256": hashlib.sha256(content).hexdigest()}
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_bytes(folder / ARRAYS, content)
    durable.write_text(folder / RECORD, json_text(record, indent=2))


def _read(folder: Path, identity: dict[str, Any]) -> Reference | None:
    """What is stored under this identity; None where there is nothing, or not all of it as it was written."""
    try:
        record = read_json(folder / RECORD)
        content = (folder / ARRAYS).read_bytes()
    except (FileNotFoundError, ValueError):
        return None
    images = record.pop("images", 0)
    if record != identity | {"sha256": hashlib.sha256(content).hexdigest()}:
        return None
    arrays = load(content)
    moments = Moments(images, arrays["total"], arrays["outer"])
    return Reference(moments, arrays["features"], spread(images, identity["kept"]))
