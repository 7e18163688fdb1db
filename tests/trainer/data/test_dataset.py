"""Data: the digits as the issue fixes them, files of one's own, and what is refused."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from diffusion.config import Autoguidance, DdpmProcess, MLPConfig, UNetConfig
from diffusion.network import build_network
from diffusion.package import PackageConfig, save_package
from trainer.config.data import DataConfig
from trainer.config.evaluation import EvaluationConfig
from trainer.config.run_config import RunConfig
from trainer.config.training import AugmentConfig, TrainingConfig
from trainer.data import writer
from trainer.data.arrays import load_array
from trainer.data.dataset import open_dataset
from trainer.data.mapped_images import Pixels
from trainer.data.prepare import prepare
from trainer.data.sources import check_source
from trainer.data.split import seeded_split
from trainer.driver.data_checks import check_data
from trainer.errors import InputError
from trainer.evaluate.extractors.dimensions import check_sizes

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
    pixels = load_array(DataConfig()).pixels
    original = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)
    assert pixels.dtype == np.uint8
    assert np.array_equal(
        pixels[..., 0], [[[int(v * 255 / 16 + 0.5) for v in row] for row in image] for image in original]
    )
    assert set(np.unique(digits.images("train")[:])) == {int(v * 255 / 16 + 0.5) for v in range(17)}


def test_the_split_is_stratified_and_loses_nothing(digits):
    whole = load_array(DataConfig())
    for digit in range(10):
        share = (digits.labels("heldout") == digit).sum()
        assert share == pytest.approx(0.2 * (whole.labels == digit).sum(), abs=1)
    together = np.concatenate([digits.images("train")[:], digits.images("heldout")[:]]).reshape(1797, -1)
    labels = np.concatenate([digits.labels("train"), digits.labels("heldout")])
    key = lambda pixels, labels: sorted(map(tuple, np.column_stack([pixels.reshape(1797, -1), labels]).tolist()))  # noqa: E731
    assert key(together, labels) == key(whole.pixels, whole.labels)


def test_the_split_depends_on_its_own_seed_alone():
    labels = load_array(DataConfig()).labels
    first, again, other = (seeded_split(labels, DataConfig(split_seed=seed))[0]["heldout"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


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
    (first.folder / "train-00000.arrow").write_bytes(b"half")
    again = prepare(DataConfig(), tmp_path)
    assert again.images("train").shape == (1437, 8, 8, 1)


def test_images_are_mapped_rather_than_read(digits):
    before = pa.total_allocated_bytes()
    images = digits.images("train")[:]
    assert not images.flags.owndata
    assert not images.flags.writeable
    assert pa.total_allocated_bytes() == before


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
    together = np.concatenate([dataset.images(split)[:] for split in ("train", "heldout")])
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
        "missing", "other-suffix", "raw", "cut", "float", "2d", "two-channels", "one-image", "pickle",
        *(pytest.param(n) for n, why in BROKEN.items()),
    ],
)  # fmt: skip
def test_sources_that_are_not_images_are_refused_in_one_line(tmp_path, name):
    source = bad_sources(tmp_path)[name]
    with pytest.raises(InputError) as caught:
        prepare(DataConfig(source=source), tmp_path / "storage")
    assert str(caught.value).startswith(f"data.source = {source!r}: ")
    assert "\n" not in str(caught.value)


def test_check_source_reads_nothing_and_refuses_what_is_not_there(tmp_path):
    check_source(DataConfig())
    check_source(DataConfig(source=bad_sources(tmp_path)["raw"]))
    with pytest.raises(InputError, match=r"allowed: digits; the path of a \.npy or \.parquet file"):
        check_source(DataConfig(source="digit"))


@pytest.mark.parametrize(
    ("config", "pixels"),
    [({"heldout_fraction": 0.001}, None), ({"heldout_fraction": 0.999}, None), ({"heldout_fraction": 0.9}, 2)],
    ids=["digits-too-few-heldout", "digits-too-few-to-train-on", "two-images"],
)
def test_a_split_that_cannot_be_made_is_bad_input(tmp_path, config, pixels):
    source = npy(tmp_path, np.zeros((pixels, 4, 4), dtype=np.uint8)) if pixels else "digits"
    with pytest.raises(InputError, match=r"data\.heldout_fraction"):
        prepare(DataConfig(source=source, **config), tmp_path)


@pytest.mark.parametrize(
    "rows", [slice(None), slice(2, 3), slice(1, 6), slice(0, 4), slice(4, 7), slice(3, 3), slice(6, 0, -2)]
)
def test_shards_are_sliced_as_one_array(rows):
    whole = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 1), dtype=np.uint8)
    pixels = Pixels([whole[:4], whole[4:6], whole[6:]])
    assert (len(pixels), pixels.shape) == (7, whole.shape)
    assert np.array_equal(pixels[rows], whole[rows])


@given(st.lists(st.integers(0, 6), max_size=20))
def test_shards_are_indexed_as_one_array(rows):
    whole = np.arange(7 * 6, dtype=np.uint8).reshape(7, 2, 3, 1)
    numbers = np.array(rows, dtype=np.int64)
    assert np.array_equal(Pixels([whole[:4], whole[4:6], whole[6:]])[numbers], whole[numbers])


@pytest.mark.parametrize("row", [-1, 7])
def test_rows_that_there_are_not_are_an_error(row):
    with pytest.raises(IndexError, match="allowed: 0 to 6"):
        Pixels([np.zeros((7, 1, 1, 1), np.uint8)])[np.array([row])]


def test_statistics_are_those_of_the_training_images(digits):
    images = digits.images("train")[:]
    assert digits.info.mean == pytest.approx([images.mean()], rel=1e-12)
    assert digits.info.std == pytest.approx([images.std()], rel=1e-12)


def test_ids_name_the_rows_of_the_source(digits):
    ids = digits.ids("train") + digits.ids("heldout")
    assert sorted(ids) == sorted(f"digits:{row}" for row in range(1797))
    original = load_array(DataConfig()).pixels
    row = int(digits.ids("heldout")[7].split(":")[1])
    assert np.array_equal(digits.images("heldout")[:][7], original[row])


def test_arrays_are_converted_where_that_is_asked_for(tmp_path, digits):
    original = digits.images("train")[:]
    coloured = prepare(DataConfig(channels=3), tmp_path)
    assert np.array_equal(coloured.images("train")[:], original.repeat(3, axis=-1))
    larger = prepare(DataConfig(size=16), tmp_path)
    assert larger.info.image_shape == (1, 16, 16)
    expected = Image.fromarray(original[0, ..., 0]).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(larger.images("train")[:][0, ..., 0], np.asarray(expected))


def test_shards_have_a_fixed_number_of_rows_and_say_what_they_are(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 4, 4), dtype=np.uint8)
    source = npy(tmp_path, pixels)
    whole = prepare(DataConfig(source=source), tmp_path / "whole")
    monkeypatch.setattr(writer, "SHARD_ROWS", 16)
    parts = prepare(DataConfig(source=source), tmp_path / "parts")
    assert [shard.rows for shard in parts.info.shards["train"]] == [16, 16, 8]
    assert parts.info.fingerprint == whole.info.fingerprint
    assert np.array_equal(parts.images("train")[:], whole.images("train")[:])
    for shard in parts.info.shards["train"]:
        content = (parts.folder / shard.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)


def test_a_prepared_folder_is_used_where_it_is(tmp_path, digits):
    used = prepare(DataConfig(source=str(digits.folder)), tmp_path)
    assert used.folder == digits.folder
    assert used.info == replace(digits.info, source=str(digits.folder))
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "datasets" / "verified"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"heldout_fraction": 0.3}, r"data\.heldout_fraction = 0\.3: .* is prepared with 0\.2"),
        ({"split_seed": 1}, r"data\.split_seed = 1: .* is prepared with 0"),
        ({"size": 16}, r"data\.size = 16: .* is prepared with \[8, 8\]"),
        ({"channels": 3}, r"data\.channels = 3: .* is prepared with 1"),
        ({"label_column": "none"}, r"data\.label_column = 'none': .* is prepared"),
    ],
)
def test_a_prepared_folder_that_was_prepared_otherwise_is_refused(digits, settings, said):
    with pytest.raises(InputError, match=said):
        check_source(DataConfig(source=str(digits.folder), **settings))


def test_columns_of_a_source_without_columns_are_refused():
    with pytest.raises(InputError, match=r"data\.image_column = 'x': data\.source = 'digits' has none"):
        check_source(DataConfig(image_column="x"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format_version": 1}', "format_version = 1; allowed: 2; prepare it again"),
        ('{"format_version": 2}', "is incomplete: 'shards'"),
        ("[]", "is not the manifest of a prepared data set"),
        ("{", "is not the manifest of a prepared data set"),
    ],
)
def test_a_folder_of_another_format_is_refused(tmp_path, text, said):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=said):
        check_source(DataConfig(source=str(tmp_path)))


def test_a_shard_that_is_not_whole_is_refused(tmp_path):
    made = prepare(DataConfig(), tmp_path)
    shard = made.folder / "heldout-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"heldout-00000\.arrow: missing or incomplete"):
        prepare(DataConfig(source=str(made.folder)), tmp_path)


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


@pytest.mark.parametrize(("padding", "refused"), [(7, False), (8, True)])
def test_padding_as_wide_as_the_images_is_refused(tmp_path, padding, refused):
    config = RunConfig(training=TrainingConfig(augment=AugmentConfig(crop_padding=padding)))
    dataset = prepare(config.data, tmp_path)
    if not refused:
        check_data(config, dataset)
        return
    with pytest.raises(InputError, match="crop_padding = 8: the images are 8 x 8; allowed: 0 to 7"):
        check_data(config, dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extractors": ("pixels",), "samples": 65}, None),
        ({"extractors": ("efficientnet_lite0",)}, "1280 training images, and the covariance of the 1280 features"),
        ({"extractors": ("efficientnet_lite0",), "samples": 1280}, "samples = 1280: the covariance of the 1280"),
        ({"metrics": ("frechet",), "samples": 65}, None),
        ({"metrics": ("vlb", "kid"), "extractors": ("efficientnet_lite0",), "samples": 65}, None),
    ],
)
def test_too_few_images_for_the_features_are_refused_with_the_least_number(tmp_path, changes, message):
    config = RunConfig(evaluation=EvaluationConfig(**changes))
    info = replace(prepare(config.data, tmp_path).info, train=1280)
    if message is None:
        check_sizes(config.evaluation, info)
        return
    with pytest.raises(InputError, match=message) as error:
        check_sizes(config.evaluation, info)
    assert "1281" in str(error.value)


@pytest.mark.parametrize(("metric", "least"), [("kid", 20), ("precision_recall", 4)])
def test_too_few_images_for_kernels_and_neighbours_are_refused(tmp_path, metric, least):
    info = prepare(DataConfig(), tmp_path).info
    config = EvaluationConfig(metrics=(metric,))
    check_sizes(config, replace(info, heldout=least))
    with pytest.raises(InputError, match=f"and {least - 1} held-out images; allowed: at least {least} of each"):
        check_sizes(config, replace(info, heldout=least - 1))


def test_a_curve_needs_six_images_in_each_of_eight_groups(tmp_path):
    info = prepare(DataConfig(), tmp_path).info
    config = EvaluationConfig(metrics=("denoising",))
    check_sizes(config, replace(info, heldout=48))
    with pytest.raises(InputError, match="denoising: 47 held-out images; allowed: at least 48"):
        check_sizes(config, replace(info, heldout=47))


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
