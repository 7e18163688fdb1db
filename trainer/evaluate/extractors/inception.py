"""Inception-v3 as the user's own TorchScript file: the one extractor whose Frechet distance is called `fid`.

The file's interface is that of the copies in use for FID: `network(images, return_features=True)` takes uint8
[N, 3, H, W] in 0..255 of any size, resizes and normalises them itself, and returns [N, 2048].

TorchScript is a program: `torch.jit.load` runs it in an interpreter that imports no Python and unpickles no Python
objects, but it may call any of torch's operators, those that map files included. A file is trusted like a program; its
digest says which one.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.errors import last_line
from trainer.evaluate.extractors.base import Pixels, as_rgb, in_batches

DIMENSIONS, BATCH = 2048, 32
INTERFACE = (
    "allowed: a TorchScript file whose forward(images, return_features=True) takes uint8 [N, 3, H, W] "
    f"and returns finite features [N, {DIMENSIONS}]"
)


@dataclass(frozen=True)
class InceptionExtractor:
    """`inception`.

    Attributes:
        network: in evaluation mode.
        sha256: of its file.
    """

    network: torch.jit.ScriptModule
    sha256: str
    name: str = "inception"
    dimensions: int = DIMENSIONS

    def features(self, pixels: Pixels) -> Tensor:
        """Features of 8-bit images [N, H, W, C], float64 [N, 2048]."""
        return in_batches(lambda batch: self.network(batch, return_features=True), as_rgb(pixels), BATCH)


def load_inception(path: Path, sha256: str | None = None) -> InceptionExtractor:
    """The extractor in a file that is checked to be what it says.

    Args:
        path: TorchScript file.
        sha256: its digest, if known; the extractor's `sha256` is what to record and to give next time.

    Raises:
        ValueError: no such file, another digest, not TorchScript, or not of this interface.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; {INTERFACE}") from error
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ValueError(f"{path}: SHA-256 {digest}; allowed: {sha256}, as configured")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 on torch.jit; files in use are TorchScript
            network = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"{path}: not a TorchScript file; {INTERFACE}") from error
    _check_interface(path, network)
    return InceptionExtractor(network, digest)


def _check_interface(path: Path, network: torch.jit.ScriptModule) -> None:
    """Two probes of unlike sizes: the shape, finite values, and features that depend on the image and on it alone."""
    ramp = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).remainder(251).to(torch.uint8)
    ramp[1] = 255 - ramp[1] // 2
    try:
        with torch.inference_mode():
            both, alone = (network(x, return_features=True) for x in (ramp, ramp[:1]))
            large = network(ramp.repeat(1, 1, 2, 2), return_features=True)
    except RuntimeError as error:
        reason = last_line(error)
        raise ValueError(f"{path}: cannot take the images ({reason}); {INTERFACE}") from error
    for found, count in ((both, 2), (alone, 1), (large, 2)):
        if not isinstance(found, Tensor) or found.shape != (count, DIMENSIONS):
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{path}: output {shape} for {count} images; {INTERFACE}")
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"{path}: output that is not finite; {INTERFACE}")
    scale = both.abs().max()
    if bool((both[:1] - alone).abs().max() > 1e-3 * scale):
        raise ValueError(f"{path}: an image's features depend on its batch; {INTERFACE}, each row of its image alone")
    if not bool((both[0] - both[1]).abs().max() > 1e-6 * scale):
        raise ValueError(f"{path}: the same features for different images; {INTERFACE}, of the image")
