"""From the bytes of an image file to 8-bit pixels, or to the reason why not. Files are not trusted.

Alpha is composited on white. 16 bits become 8 by v 255 / 65535, rounded. An image of another shape is scaled to cover
the wanted size, and the middle is cut out, antialiased.
"""

import io
import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 50_000_000
"""Images of more are not decoded: a few kilobytes of PNG can stand for gigabytes."""

MIN_KEPT = 0.25
"""Images of which a crop would keep less than this have the wrong shape."""

Image.init()  # or Image.open knows the formats of a first few plugins only
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
GREY = ("1", "L", "LA", "La")
Size = tuple[int, int]
Channels = Literal["auto", 1, 3]


class Rejected(Exception):
    """Why an image is not used, in one line."""


def upright_size(data: bytes | None) -> Size:
    """Width and height by the header alone.

    Raises:
        Rejected: no image, or one of too many pixels.
    """
    image = _opened(data)
    with warnings.catch_warnings(action="ignore"):
        turned = _orientation(image) in range(5, 9)
    width, height = image.size
    return (height, width) if turned else (width, height)


def decode(data: bytes | None, size: Size, channels: Channels) -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 [H, W, C].

    Args:
        data: the file.
        size: wanted width and height.
        channels: wanted; with `auto` a grey image has one and any other three.

    Raises:
        Rejected: the reason.
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
    """An image of mode L or RGB at the wanted size and channels, uint8 [H, W, C]; one of that size is left as it is.

    Raises:
        Rejected: too little of it would be left.
    """
    (width, height), (wide, high) = image.size, size
    kept = min(width * high / (height * wide), height * wide / (width * high))
    if kept < MIN_KEPT:
        raise Rejected(f"wrong shape: {width} x {height}, of which {wide} x {high} would keep {kept:.0%}")
    if image.size != size:
        image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if channels != "auto":
        image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


def _opened(data: bytes | None) -> Image.Image:
    """An image whose header has been read, and no more."""
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
    """How a photograph lies, 1 for upright; other formats are as they are, and Pillow would decode some to tell."""
    if image.format not in ("JPEG", "MPO"):
        return 1
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - an image may be good though its EXIF is not
        return 1


def _flattened(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, on white."""
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
