"""Decodes untrusted image files to 8-bit pixels, or gives the reason why an image is rejected.

Alpha is composited on white. 16-bit values v become round(v 255 / 65535). An image of another size is scaled, with
antialiasing, until it covers the requested size, and cropped at the centre.
"""

import io
import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 50_000_000
"""Larger images are not decoded: a PNG of a few kilobytes can decode to gigabytes."""

MIN_KEPT_FRACTION = 0.25
"""An image is rejected if cropping would keep a smaller fraction of its area."""

Image.init()  # or Image.open knows the formats of a first few plugins only
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
GREY = ("1", "L", "LA", "La")
Size = tuple[int, int]
Channels = Literal["auto", 1, 3]


class Rejected(Exception):
    """An image cannot be used; the message is the reason, in one line."""


def upright_size(data: bytes | None) -> Size:
    """Width and height of an image when upright, read from its header alone.

    Raises:
        Rejected: not an image, or more than MAX_PIXELS pixels.
    """
    image = _opened(data)
    with warnings.catch_warnings(action="ignore"):
        turned = _orientation(image) in range(5, 9)
    width, height = image.size
    return (height, width) if turned else (width, height)


def decode(data: bytes | None, size: Size, channels: Channels) -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 [H, W, C].

    Args:
        data: content of the file; None for a null value.
        size: width and height of the result, in pixels.
        channels: channels of the result; with `auto`, 1 for a grey image and 3 for any other.

    Raises:
        Rejected: the image cannot be used.
    """
    image = _opened(data)
    try:
        with warnings.catch_warnings(action="ignore"):
            image.load()
            if _orientation(image) != 1:
                image = ImageOps.exif_transpose(image)
            return fit(_flattened(image), size, channels)
    except Rejected:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise what they like about a broken file
        raise Rejected(f"cannot be decoded: {_line(error)}") from None


def fit(image: Image.Image, size: Size, channels: Channels) -> NDArray[np.uint8]:
    """Scale and crop an image of mode L or RGB to the given size and channels, uint8 [H, W, C].

    Raises:
        Rejected: cropping would keep less than MIN_KEPT_FRACTION of its area.
    """
    (width, height), (new_width, new_height) = image.size, size
    kept = min(width * new_height / (height * new_width), height * new_width / (width * new_height))
    if kept < MIN_KEPT_FRACTION:
        raise Rejected(f"wrong shape: {width} x {height}, of which {new_width} x {new_height} would keep {kept:.0%}")
    if image.size != size:
        image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if channels != "auto":
        image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


def _opened(data: bytes | None) -> Image.Image:
    """The image with only its header read."""
    if data is None:
        raise Rejected("null")
    if not data:
        raise Rejected("empty")
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise Rejected(f"not an image of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise Rejected(f"more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # noqa: BLE001 - decoders raise what they like about a broken file
        raise Rejected(f"cannot be decoded: {_line(error)}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Rejected(f"more than {MAX_PIXELS} pixels: {width} x {height}")
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 for upright. Only of JPEG: reading it from other formats may decode the image."""
    if image.format not in ("JPEG", "MPO"):
        return 1
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - an image may be good though its EXIF is not
        return 1


def _flattened(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, composited on white."""
    mode = image.mode
    if mode == "F":
        raise Rejected("32-bit floats; allowed: 8 or 16 bits a channel")
    if mode.startswith("I"):
        return _eight_bits(image)
    if "transparency" in image.info or mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        drawn = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        drawn = Image.alpha_composite(Image.new("RGBA", image.size, "white"), drawn).convert("RGB")
    else:
        drawn = image.convert("L" if mode in GREY else "RGB")
    if drawn.mode == "RGB" and (mode in GREY or (mode in ("P", "PA") and _is_grey(drawn))):
        return drawn.getchannel(0)
    return drawn


def _is_grey(image: Image.Image) -> bool:
    pixels = np.asarray(image)
    return bool((pixels == pixels[..., :1]).all())


def _eight_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise Rejected("32-bit integers; allowed: 8 or 16 bits a channel")
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
