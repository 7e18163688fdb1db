"""Data: the digits as the issue fixes them, files of one's own, and what is refused."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion.config import Autoguidance, DdpmProcess, MLPConfig, UNetConfig
from diffusion.network import build_network
from diffusion.package import PackageConfig, save_package
from trainer.checks import check_data
from trainer.config import DataConfig, EvaluationConfig, RunConfig
from trainer.data.dataset import open_dataset, prepare, split_images
from trainer.data.sources import Images, check_source, load_source
from trainer.settings import InputError

DIGITS_FINGERPRINT = "ea9abddc141b4343386d3ece50f919de5f49551812b30ce01f3bd64d4e392b6f"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare(DataConfig(), tmp_path_factory.mktemp("storage"))


def npy(folder, pixels, name="images.npy") -> str:
    path = folder / name
    np.save(path, pixels)
    return str(path)


def test_the_digits_are_1437_to_train_on_and_360_held_out(digits):
    assert (digits.info.train, digits.info.heldout, digits.info.classes, digits.info.image_shape) == (
        1437,
        360,
        10,
        (1, 8, 8),
    )
    assert digits.images("train").shape == (1437, 8, 8, 1)
    assert digits.images("heldout").shape == (360, 8, 8, 1)


def test_the_digits_never_change(digits):
    """Every recorded metric of the main job belongs to this fingerprint."""
    assert digits.info.fingerprint == DIGITS_FINGERPRINT


def test_levels_are_sixteenths_of_255_rounded(digits):
    pixels = load_source("digits").pixels
    original = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)
    assert pixels.dtype == np.uint8
    assert np.array_equal(
        pixels[..., 0], [[[int(v * 255 / 16 + 0.5) for v in row] for row in image] for image in original]
    )
    assert set(np.unique(digits.images("train"))) == {int(v * 255 / 16 + 0.5) for v in range(17)}


def test_the_split_is_stratified_and_loses_nothing(digits):
    whole = load_source("digits")
    for digit in range(10):
        share = (digits.labels("heldout") == digit).sum()
        assert share == pytest.approx(0.2 * (whole.labels == digit).sum(), abs=1)
    together = np.concatenate([digits.images("train"), digits.images("heldout")]).reshape(1797, -1)
    labels = np.concatenate([digits.labels("train"), digits.labels("heldout")])
    key = lambda pixels, labels: sorted(map(tuple, np.column_stack([pixels.reshape(1797, -1), labels]).tolist()))  # noqa: E731
    assert key(together, labels) == key(whole.pixels, whole.labels)


def test_the_split_depends_on_its_own_seed_alone():
    data = load_source("digits")
    first, again, other = (split_images(data, DataConfig(split_seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(first["train"].pixels, again["train"].pixels)
    assert not np.array_equal(first["train"].pixels, other["train"].pixels)


def test_preparing_again_reuses_the_folder(tmp_path):
    first = prepare(DataConfig(), tmp_path)
    written = (first.folder / "dataset.json").stat().st_mtime_ns
    again = prepare(DataConfig(), tmp_path)
    assert again == first
    assert (again.folder / "dataset.json").stat().st_mtime_ns == written
    assert open_dataset(first.folder) == first


def test_a_preparation_that_died_is_done_again(tmp_path):
    first = prepare(DataConfig(), tmp_path)
    (first.folder / "dataset.json").unlink()
    (first.folder / "train_images.npy").write_bytes(b"half")
    again = prepare(DataConfig(), tmp_path)
    assert again.images("train").shape == (1437, 8, 8, 1)


def test_images_are_mapped_rather_than_read(digits):
    assert isinstance(digits.images("train"), np.memmap)


@pytest.mark.parametrize("change", ["pixel", "order", "seed", "fraction"])
def test_fingerprint_sees_every_change(tmp_path, change):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    before = prepare(DataConfig(source=npy(tmp_path, pixels)), tmp_path).info.fingerprint
    config = {"seed": {"split_seed": 1}, "fraction": {"heldout_fraction": 0.3}}.get(change, {})
    if change == "pixel":
        pixels[3, 2, 1] ^= 1
    if change == "order":
        pixels = pixels[::-1]
    after = prepare(DataConfig(source=npy(tmp_path, pixels, "other.npy"), **config), tmp_path).info.fingerprint
    assert after != before


@pytest.mark.parametrize("shape", [(10, 6, 4), (10, 6, 4, 1), (10, 6, 4, 3)])
def test_npy_images_survive_unchanged_and_unlabelled(tmp_path, shape):
    pixels = np.asfortranarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    dataset = prepare(DataConfig(source=npy(tmp_path, pixels), heldout_fraction=0.3), tmp_path)
    assert (dataset.info.train, dataset.info.heldout, dataset.info.classes) == (7, 3, 0)
    assert dataset.info.image_shape == (3 if shape[-1] == 3 else 1, 6, 4)
    together = np.concatenate([dataset.images(split) for split in ("train", "heldout")])
    assert sorted(image.tobytes() for image in together) == sorted(image.tobytes() for image in pixels)
    assert set(dataset.labels("train")) == {-1}


class Trap:
    """Would run code if it were ever unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def bad_sources(folder):
    raw = folder / "raw.npy"
    raw.write_bytes(b"these are not images")
    cut = folder / "cut.npy"
    np.save(cut, np.zeros((10, 4, 4), dtype=np.uint8))
    cut.write_bytes(cut.read_bytes()[:150])
    empty = folder / "empty.npy"
    empty.touch()
    archive = folder / "archive.npy"
    with archive.open("wb") as file:
        np.savez(file, images=np.zeros((10, 4, 4), dtype=np.uint8))
    return {
        "missing": "/no/such/file.npy",
        "folder": str(folder),
        "other-suffix": str(folder / "images.png"),
        "raw": str(raw),
        "cut": str(cut),
        "float": npy(folder, np.zeros((10, 4, 4), dtype=np.float32), "float.npy"),
        "2d": npy(folder, np.zeros((10, 4), dtype=np.uint8), "2d.npy"),
        "two-channels": npy(folder, np.zeros((10, 4, 4, 2), dtype=np.uint8), "two.npy"),
        "one-image": npy(folder, np.zeros((1, 4, 4), dtype=np.uint8), "one.npy"),
        "pickle": npy(folder, np.array([Trap()], dtype=object), "pickle.npy"),
        "empty": str(empty),
        "archive": str(archive),
        "no-pixels": npy(folder, np.zeros((10, 0, 4), dtype=np.uint8), "flat.npy"),
    }


BROKEN = {
    "empty": "EOFError escapes",
    "archive": "AttributeError escapes",
    "no-pixels": "images without pixels are taken",
}


@pytest.mark.parametrize(
    "name",
    [
        "missing", "folder", "other-suffix", "raw", "cut", "float", "2d", "two-channels", "one-image", "pickle",
        *(pytest.param(n) for n, why in BROKEN.items()),
    ],
)  # fmt: skip
def test_sources_that_are_not_images_are_refused_in_one_line(tmp_path, name):
    source = bad_sources(tmp_path)[name]
    with pytest.raises(InputError) as caught:
        load_source(source)
    assert str(caught.value).startswith(f"data.source = {source!r}: ")
    assert "\n" not in str(caught.value)


def test_check_source_reads_nothing_and_refuses_what_is_not_there(tmp_path):
    check_source("digits")
    check_source(bad_sources(tmp_path)["raw"])
    with pytest.raises(InputError, match=r"allowed: digits, or the path of a \.npy file"):
        check_source("digit")


@pytest.mark.parametrize(
    ("config", "pixels"),
    [({"heldout_fraction": 0.001}, None), ({"heldout_fraction": 0.999}, None), ({"heldout_fraction": 0.9}, 2)],
    ids=["digits-too-few-heldout", "digits-too-few-to-train-on", "two-images"],
)
def test_a_split_that_cannot_be_made_is_bad_input(tmp_path, config, pixels):
    source = npy(tmp_path, np.zeros((pixels, 4, 4), dtype=np.uint8)) if pixels else "digits"
    with pytest.raises(InputError, match=r"data\.heldout_fraction"):
        prepare(DataConfig(source=source, **config), tmp_path)


def test_classes_are_counted_from_the_labels():
    pixels = np.zeros((3, 2, 2, 1), dtype=np.uint8)
    assert Images(pixels, np.array([0, 4, 2])).classes == 5
    assert Images(pixels, np.full(3, -1)).classes == 0


@pytest.mark.parametrize(
    ("shape", "labelled", "message"),
    [
        (
            (200, 7, 8),
            False,
            "network.channels has 2 resolutions, so image sides must be divisible by 2; the images are 7 x 8",
        ),
        ((200, 8, 8), False, None),
    ],
)
def test_data_that_the_network_cannot_take_is_refused(tmp_path, shape, labelled, message):
    config = RunConfig(data=DataConfig(source=npy(tmp_path, np.zeros(shape, dtype=np.uint8))))
    dataset = prepare(config.data, tmp_path)
    if message is None:
        check_data(config, dataset)
    else:
        with pytest.raises(InputError, match=message):
            check_data(config, dataset)


def test_too_few_heldout_images_for_the_frechet_distance_are_refused(tmp_path):
    config = RunConfig(data=DataConfig(heldout_fraction=0.03))
    with pytest.raises(InputError, match="1743 training and 54 held-out images; allowed: at least 65 each"):
        check_data(config, prepare(config.data, tmp_path))


DEFAULT_PROCESS = DdpmProcess()


def guide(folder, process=DEFAULT_PROCESS, shape=(1, 8, 8), classes=0):
    network = MLPConfig(width=16, depth=1, classes=classes)
    config = PackageConfig(process=process, prediction="epsilon", network=network, image_shape=shape)
    save_package(folder, config, build_network(network, shape).state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, None),
        ({"classes": 10}, None),
        ({"classes": 5}, "has 5 classes, the model 10; allowed: a guide with the same classes"),
        ({"shape": (1, 4, 4)}, r"makes images of \(1, 4, 4\); allowed: .* 'digits', \(1, 8, 8\)"),
        (
            {"process": DdpmProcess(num_train_timesteps=50)},
            "predicts epsilon over 50 steps, the model epsilon over 1000",
        ),
        (None, "no manifest.json; this is not a complete package"),
    ],
    ids=["without-classes", "with-classes", "other-classes", "shape", "process", "no-package"],
)
def test_a_guide_of_another_kind_is_refused_before_training(tmp_path, settings, message):
    if settings is not None:
        guide(tmp_path / "guide", **settings)
    evaluation = EvaluationConfig(guidance=Autoguidance(guide=str(tmp_path / "guide")))
    config = RunConfig(network=UNetConfig(classes=10), evaluation=evaluation)
    dataset = prepare(config.data, tmp_path)
    if message is None:
        check_data(config, dataset)
    else:
        with pytest.raises(InputError, match=rf"^evaluation\.guidance\.guide: .*{message}"):
            check_data(config, dataset)


def test_another_number_of_classes_than_the_data_have_is_refused(tmp_path):
    config = RunConfig(network=UNetConfig(classes=7))
    with pytest.raises(
        InputError, match=r"network\.classes = 7: data\.source = 'digits' has 10 classes; allowed: that"
    ):
        check_data(config, prepare(config.data, tmp_path))
