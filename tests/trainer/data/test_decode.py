"""From files to pixels: every mode, alpha on white, sizes, and what is rejected for which reason."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.trainer.data.images import chunk, encoded, noise, png
from trainer.data.decode import MAX_PIXELS, TURNED, Rejected, decode, upright_size


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_images_of_the_wanted_size_are_unchanged(mode, channels):
    image = noise(mode)
    pixels = decode(encoded(image), image.size, "auto").pixels
    assert pixels.shape == (4, 6, channels)
    assert np.array_equal(pixels.squeeze(), np.asarray(image))


def test_bits_are_black_and_white():
    bits = np.random.default_rng(0).random((4, 6)) < 0.5
    pixels = decode(encoded(Image.fromarray(bits)), (6, 4), "auto").pixels
    assert np.array_equal(pixels[..., 0], bits * 255)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_composited_on_white(mode):
    image = noise(mode)
    levels = np.asarray(image).astype(float)
    colour, alpha = levels[..., :-1], levels[..., -1:] / 255
    pixels = decode(encoded(image), image.size, "auto").pixels
    assert pixels.shape[-1] == len(mode) - 1
    assert np.abs(pixels - (colour * alpha + 255 * (1 - alpha))).max() <= 0.51


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_transparent_colour_is_white(mode):
    image = Image.new(mode, (2, 1), 0)
    if mode == "P":
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
    else:
        image.putpixel((1, 0), 40 if mode == "L" else (40, 50, 60))
    transparent = (0, 0, 0) if mode == "RGB" else 0
    pixels = decode(encoded(image, transparency=transparent), (2, 1), 3).pixels
    assert pixels[0].tolist() == [[255] * 3, [40] * 3 if mode == "L" else [40, 50, 60]]


@pytest.mark.parametrize(("colours", "channels"), [([9, 9, 9, 200, 200, 200], 1), ([9, 9, 9, 200, 200, 100], 3)])
def test_a_palette_is_grey_where_its_colours_are(colours, channels):
    image = Image.new("P", (2, 1), 0)
    image.putpalette(colours)
    image.putpixel((1, 0), 1)
    pixels = decode(encoded(image), (2, 1), "auto").pixels
    assert pixels.shape == (1, 2, channels)
    assert pixels[0, 1, -1] == colours[-1]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_become_the_nearest_eight(kind):
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    pixels = decode(encoded(Image.fromarray(levels), kind), (6, 1), "auto").pixels
    assert pixels[0, :, 0].tolist() == [round(float(v) * 255 / 65535) for v in levels[0]]


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    pixels = decode(encoded(image, "JPEG", quality=95), (4, 4), "auto").pixels
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() < 12


def test_grey_is_spread_and_colour_is_weighed_where_channels_are_given():
    grey, colour = noise("L"), noise("RGB")
    assert np.array_equal(decode(encoded(grey), grey.size, 3).pixels, np.asarray(grey)[..., np.newaxis].repeat(3, -1))
    assert np.array_equal(decode(encoded(colour), colour.size, 1).pixels[..., 0], np.asarray(colour.convert("L")))


def test_the_middle_is_cut_out_and_scaled_without_aliases():
    image = Image.new("L", (64, 32), 0)
    stripes = np.zeros((32, 32), np.uint8)
    stripes[:, ::2] = 255
    image.paste(Image.fromarray(stripes), (16, 0))
    pixels = decode(encoded(image), (8, 8), "auto").pixels
    assert np.abs(pixels[:, 2:-2].astype(int) - 127).max() < 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_of_every_format_are_turned_upright(kind, orientation):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10).convert("RGB")
    stored = image if orientation == 1 else image.transpose(TURNED[turned_back(orientation)])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {} if kind == "PNG" else {"quality": 100}
    file = encoded(stored, kind, exif=exif, **options)
    assert upright_size(file) == (6, 4)
    close = np.abs(decode(file, (6, 4), "auto").pixels.astype(int) - np.asarray(image).astype(int)).max()
    assert close <= (0 if kind in ("PNG", "WEBP", "TIFF") else 8)


def turned_back(orientation: int) -> int:
    """The orientation that undoes another."""
    return {6: 8, 8: 6}.get(orientation, orientation)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_is_ignored(value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert upright_size(encoded(noise("L"), "JPEG", exif=exif)) == (6, 4)


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


BAD_CHUNKS = {
    "long text": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2 * 10**6))),
    "broken text": chunk(b"zTXt", b"a\0\1zz"),
    "text in no code": chunk(b"iTXt", b"\xff"),
    "checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"\0",
    "profile": chunk(b"iCCP", b"x\0\0junk"),
    "short profile": chunk(b"iCCP", b"x"),
    "exif": chunk(b"eXIf", b"nonsense"),
    "gamma": chunk(b"gAMA", b"1"),
    "resolution": chunk(b"pHYs", b""),
    "colours": chunk(b"cHRM", b"\0"),
    "frames": chunk(b"acTL", b"\0"),
}
BAD_SEGMENTS = {
    "profile": segment(0xE2, b"ICC_PROFILE\0"),
    "pictures": segment(0xE2, b"MPF\0junk"),
    "photoshop": segment(0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 9),
    "exif": segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "empty exif": segment(0xE1, b"Exif\0\0"),
    "comment": segment(0xFE, b"\xff\xfe"),
    "xmp": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
@pytest.mark.parametrize("before_pixels", [True, False])
def test_odd_chunks_cost_no_png(name, before_pixels):
    image = noise("L")
    plain = encoded(image)
    at = 33 if before_pixels else len(plain) - 12
    file = plain[:at] + BAD_CHUNKS[name] + plain[at:]
    assert upright_size(file) == (6, 4)
    assert np.array_equal(decode(file, (6, 4), "auto").pixels[..., 0], np.asarray(image))


@pytest.mark.parametrize("name", BAD_SEGMENTS)
@pytest.mark.parametrize("at", [2, 20])
def test_odd_segments_cost_no_jpeg(name, at):
    plain = encoded(noise("RGB", (32, 16)), "JPEG")
    file = plain[:at] + BAD_SEGMENTS[name] + plain[at:]
    assert upright_size(file) == (32, 16)
    assert np.array_equal(decode(file, (32, 16), 3).pixels, decode(plain, (32, 16), 3).pixels)


def test_a_good_orientation_survives_odd_tags_beside_it():
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    resolution = struct.pack("<HHI4s", 0x011A, 2, 3, b"72")  # text, where a fraction belongs
    exif = segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + turned + resolution + bytes(4))
    plain = encoded(noise("RGB", (30, 20)), "JPEG")
    expected = np.rot90(decode(plain, (30, 20), "auto").pixels, -1)
    assert np.array_equal(decode(plain[:2] + exif + plain[2:], (20, 30), "auto").pixels, expected)


def test_pixels_that_are_broken_are_still_rejected_without_their_metadata():
    plain = encoded(noise("L", (64, 64)))
    broken = plain[:60] + bytes(40) + plain[100:]
    for file in (broken, broken[:33] + BAD_CHUNKS["profile"] + broken[33:]):
        with pytest.raises(Rejected):
            decode(file, (64, 64), "auto")


@pytest.mark.parametrize(
    ("white", "expected"), [(None, [0, 0, 8, 16]), (4095, [0, 1, 128, 255]), (2048, [0, 2, 255, 255])]
)
def test_a_white_level_is_what_becomes_white(white, expected):
    file = encoded(Image.fromarray(np.array([[0, 16, 2048, 4095]], np.uint16)))
    found = decode(file, (4, 1), "auto", white)
    assert found.pixels[0, :, 0].tolist() == expected
    assert found.peak == 4095


def test_a_white_level_does_not_apply_to_what_has_8_bits_and_is_refused_for_deep_colour():
    grey = encoded(noise("L"))
    assert np.array_equal(decode(grey, (6, 4), "auto", 100).pixels, decode(grey, (6, 4), "auto").pixels)
    rows = b"".join(b"\0" + np.full((4, 3), 4095, ">u2").tobytes() for _ in range(4))
    deep = png(4, 4, rows, bits=16, colour=2)
    assert decode(deep, (4, 4), "auto").pixels.max() == 15
    with pytest.raises(Rejected, match="colour of 16 bits a channel"):
        decode(deep, (4, 4), "auto", 4095)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "null"),
        (b"", "empty"),
        (b"these are no pixels", "not an image of the formats PNG"),
        (encoded(noise("RGB"))[:60], "cannot be decoded: "),
        (encoded(noise("RGB", (64, 64)), "JPEG")[:700], "cannot be decoded: OSError: image file is truncated"),
        (png(20_000, 20_000), "more than 50000000 pixels"),
        (png(7_100, 7_100), "more than 50000000 pixels: 7100 x 7100"),
        (png(0, 4), "not an image of the formats"),
        (encoded(noise("L", (100, 1))), "wrong shape: 100 x 1, of which 6 x 4 would keep 2%"),
        (encoded(Image.fromarray(np.zeros((4, 6), np.float32)), "TIFF"), "32-bit floats"),
        (encoded(Image.fromarray(np.full((4, 6), 70_000, np.int32)), "TIFF"), "32-bit integers"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n", "not an image of the formats"),
    ],
)
def test_what_cannot_be_used_is_rejected_with_a_reason(data, reason):
    with pytest.raises(Rejected, match=f"^{reason}") as caught:
        decode(data, (6, 4), "auto")
    assert "\n" not in str(caught.value)


def test_a_bomb_is_not_decoded(monkeypatch):
    """By its header alone: 100 kB that stand for 49 million pixels are decoded, one line more is not."""
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(Rejected, match="more than"):
        decode(png(MAX_PIXELS + 1, 1, data=bytes(MAX_PIXELS)), (6, 4), "auto")


@pytest.mark.parametrize("data", [None, b"", b"no"])
def test_headers_are_rejected_likewise(data):
    with pytest.raises(Rejected):
        upright_size(data)
