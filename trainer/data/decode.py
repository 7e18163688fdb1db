"""Decodes untrusted image files to 8-bit pixels, or gives the reason why an image is rejected.

Alpha is composited on white. Values v of more than 8 bits become round(v 255 / w), where w is the value of white, 65535
unless `data.white_level` says otherwise. An image of another size is scaled, with antialiasing, until it covers the
requested size, and cropped at the centre.

The content decides what a file is, not its name, and damaged metadata never costs an image: where decoding fails, it is
tried again without the metadata.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile

from trainer.data.container import exif_block, without_metadata

MAX_PIXELS = 50_000_000
"""Larger images are not decoded: a PNG of a few kilobytes can decode to gigabytes."""

MIN_KEPT_FRACTION = 0.25
"""An image is rejected if cropping would keep a smaller fraction of its area."""

Image.init()  # or Image.open knows the formats of a first few plugins only
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", *(["AVIF"] if features.check("avif") else []))
SIGNATURE_BYTES = 16
WHITE_16_BIT = 65535
PNG_TEXTS_WITH_ORIENTATION = (b"Raw profile type ", b"XML:com.adobe.xmp")
ORIENTATION = 0x0112
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image of each EXIF orientation is turned upright; 1 is upright already."""
GREY = ("1", "L", "LA", "La")
Size = tuple[int, int]
Channels = Literal["auto", 1, 3]


class Rejected(Exception):
    """An image cannot be used; the message is the reason, in one line."""


class NotAnImageError(Rejected):
    """The content is of none of the formats that are read, or claims to be and has not even their header."""


@dataclass(frozen=True)
class Decoded:
    """An image's pixels.

    Attributes:
        pixels: uint8 [H, W, C].
        peak: its highest value, where it has more than 8 bits a channel; else None.
    """

    pixels: NDArray[np.uint8]
    peak: int | None


def is_image(beginning: bytes) -> bool:
    """Whether a file that begins with these bytes, 16 or more, claims to be an image of a format that is read."""
    return any(accept(beginning) for name in FORMATS if (accept := Image.OPEN[name][1]))


def upright_size(data: bytes | None) -> Size:
    """Width and height of an image when upright, read from its header alone.

    Raises:
        Rejected: not an image, or more than MAX_PIXELS pixels.
    """
    data = _checked(data)
    image = _opened(data)
    width, height = image.size
    return (height, width) if _orientation(image, data) in range(5, 9) else (width, height)


def decode(data: bytes | None, size: Size, channels: Channels, white: int | None = None) -> Decoded:
    """The pixels of an image file.

    Args:
        data: content of the file; None for a null value.
        size: width and height of the result, in pixels.
        channels: channels of the result; with `auto`, 1 for a grey image and 3 for any other.
        white: the value of white in images of more than 8 bits; None for 65535.

    Raises:
        Rejected: the image cannot be used.
    """
    data = _checked(data)
    try:
        return _decoded(data, data, size, channels, white)
    except Rejected:
        bare = without_metadata(data)
        if bare is None or bare == data:
            raise
        try:
            return _decoded(bare, data, size, channels, white)
        except Rejected:
            pass
        raise


def _decoded(data: bytes, whole: bytes, size: Size, channels: Channels, white: int | None) -> Decoded:
    """Decode `data`, the file `whole` or what remains of it without metadata."""
    image = _opened(data)
    if white is not None and _is_deep_colour(image):
        raise Rejected("colour of 16 bits a channel, of which the upper 8 are read; allowed with a white level: grey")
    try:
        with warnings.catch_warnings(action="ignore"):
            image.load()
            upright = TURNED.get(_orientation(image, whole))
            flat, peak = _flattened(image if upright is None else image.transpose(upright), white)
            return Decoded(fit(flat, size, channels), peak)
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


def _checked(data: bytes | None) -> bytes:
    if data is None:
        raise Rejected("null")
    if not data:
        raise Rejected("empty")
    return data


def _opened(data: bytes) -> Image.Image:
    """The image with only its header read, if need be without its metadata."""
    try:
        image = _header(data)
    except Rejected:
        bare = without_metadata(data)
        if bare is None or bare == data:
            raise
        image = _header(bare)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Rejected(f"more than {MAX_PIXELS} pixels: {width} x {height}")
    return image


def _header(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings(action="ignore"):
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise NotAnImageError(f"not an image of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise Rejected(f"more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # noqa: BLE001 - decoders raise what they like about a broken file
        raise NotAnImageError(f"cannot be decoded: {_line(error)}") from None


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1 for upright or where it cannot be told.

    It is read from the file itself where it can be, since Pillow would decode a PNG first. A decoded TIFF is upright.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            if image.format == "TIFF":
                return 1
            block, exif = exif_block(data), Image.Exif()
            if block is not None:
                exif.load(block)
            elif image.format != "PNG" or any(name in data for name in PNG_TEXTS_WITH_ORIENTATION):
                exif = image.getexif()
            value = exif.get(ORIENTATION, 1)
            return value if value in TURNED else 1
    except Exception:  # noqa: BLE001 - an image may be good though its EXIF is not
        return 1


def _flattened(image: Image.Image, white: int | None) -> tuple[Image.Image, int | None]:
    """The image in mode L or RGB, composited on white; and its highest value, if it has more than 8 bits."""
    mode = image.mode
    if mode == "F":
        raise Rejected("32-bit floats; allowed: 8 or 16 bits a channel")
    if mode.startswith("I"):
        return _eight_bits(image, white)
    if "transparency" in image.info or mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        drawn = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        drawn = Image.alpha_composite(Image.new("RGBA", image.size, "white"), drawn).convert("RGB")
    else:
        drawn = image.convert("L" if mode in GREY else "RGB")
    if drawn.mode == "RGB" and (mode in GREY or (mode in ("P", "PA") and _is_grey(drawn))):
        return drawn.getchannel(0), None
    return drawn, None


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has 16 bits a channel, of which its mode keeps 8."""
    tiles = image.tile if isinstance(image, ImageFile) else []
    return not image.mode.startswith("I") and any(";16" in str(tile.args) for tile in tiles)


def _is_grey(image: Image.Image) -> bool:
    pixels = np.asarray(image)
    return bool((pixels == pixels[..., :1]).all())


def _eight_bits(image: Image.Image, white: int | None) -> tuple[Image.Image, int]:
    levels = np.asarray(image).astype(np.int64)
    lowest, peak = int(levels.min()), int(levels.max())
    if lowest < 0 or peak > WHITE_16_BIT:
        raise Rejected("32-bit integers; allowed: 8 or 16 bits a channel")
    white = white or WHITE_16_BIT
    scaled = (np.minimum(levels, white) * 255 + white // 2) // white
    return Image.fromarray(scaled.astype(np.uint8)), peak


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
