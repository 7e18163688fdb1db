"""From files to pixels: every mode, alpha on white, sizes, and what is rejected for which reason."""

import numpy as np
import pytest
from PIL import Image

from tests.trainer.data.images import encoded, noise, png
from trainer.data.decode import MAX_PIXELS, Rejected, decode, upright_size


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_images_of_the_wanted_size_are_unchanged(mode, channels):
    image = noise(mode)
    pixels = decode(encoded(image), image.size, "auto")
    assert pixels.shape == (4, 6, channels)
    assert np.array_equal(pixels.squeeze(), np.asarray(image))


def test_bits_are_black_and_white():
    bits = np.random.default_rng(0).random((4, 6)) < 0.5
    pixels = decode(encoded(Image.fromarray(bits)), (6, 4), "auto")
    assert np.array_equal(pixels[..., 0], bits * 255)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_composited_on_white(mode):
    image = noise(mode)
    levels = np.asarray(image).astype(float)
    colour, alpha = levels[..., :-1], levels[..., -1:] / 255
    pixels = decode(encoded(image), image.size, "auto")
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
    pixels = decode(encoded(image, transparency=transparent), (2, 1), 3)
    assert pixels[0].tolist() == [[255] * 3, [40] * 3 if mode == "L" else [40, 50, 60]]


@pytest.mark.parametrize(("colours", "channels"), [([9, 9, 9, 200, 200, 200], 1), ([9, 9, 9, 200, 200, 100], 3)])
def test_a_palette_is_grey_where_its_colours_are(colours, channels):
    image = Image.new("P", (2, 1), 0)
    image.putpalette(colours)
    image.putpixel((1, 0), 1)
    pixels = decode(encoded(image), (2, 1), "auto")
    assert pixels.shape == (1, 2, channels)
    assert pixels[0, 1, -1] == colours[-1]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_become_the_nearest_eight(kind):
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    pixels = decode(encoded(Image.fromarray(levels), kind), (6, 1), "auto")
    assert pixels[0, :, 0].tolist() == [round(float(v) * 255 / 65535) for v in levels[0]]


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    pixels = decode(encoded(image, "JPEG", quality=95), (4, 4), "auto")
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() < 12


def test_grey_is_spread_and_colour_is_weighed_where_channels_are_given():
    grey, colour = noise("L"), noise("RGB")
    assert np.array_equal(decode(encoded(grey), grey.size, 3), np.asarray(grey)[..., np.newaxis].repeat(3, -1))
    assert np.array_equal(decode(encoded(colour), colour.size, 1)[..., 0], np.asarray(colour.convert("L")))


def test_the_middle_is_cut_out_and_scaled_without_aliases():
    image = Image.new("L", (64, 32), 0)
    stripes = np.zeros((32, 32), np.uint8)
    stripes[:, ::2] = 255
    image.paste(Image.fromarray(stripes), (16, 0))
    pixels = decode(encoded(image), (8, 8), "auto")
    assert np.abs(pixels[:, 2:-2].astype(int) - 127).max() < 4


def test_a_photograph_is_turned_upright():
    image = Image.new("L", (16, 8), 0)
    image.paste(255, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    file = encoded(image, "JPEG", exif=exif, quality=95)
    assert upright_size(file) == (8, 16)
    pixels = decode(file, (8, 16), "auto")[..., 0]
    assert pixels[:7].min() > 200
    assert pixels[9:].max() < 50


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
