"""Weights that a run begins with: by name and shape, what is new is named, and the method is named by their digest."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.package import check_files
from trainer.config.load import resolve, validate
from trainer.config.run_config import RunConfig
from trainer.driver.initial import prepare_initial
from trainer.ema.export import write_package
from trainer.errors import InputError
from trainer.run.identity import register_name, resolve_run
from trainer.run.paths import RunPaths
from trainer.worker.initial import fitting, load_initial, packaged_shapes, shapes
from trainer.worker.objective import build_objective

SHAPE = (1, 8, 8)
UNET: dict[str, Any] = {"kind": "unet", "channels": [8, 16], "norm_groups": 4}


def made(seed=0, shape=SHAPE, **values):
    """An objective of these settings, and its configuration."""
    config = validate({"network": UNET} | values)
    torch.manual_seed(seed)
    return build_objective(config, shape), config


def package(folder: Path, seed=0, shape=SHAPE, **values) -> str:
    objective, config = made(seed, shape, **values)
    trained = {name: value.detach() for name, value in objective.named_parameters()}
    return write_package(folder, config, shape, trained, "d" * 64)


LEARNED: dict[str, Any] = {
    "process": {"kind": "vp", "schedule": {"kind": "learned"}},
    "objective": {"weighting": {"kind": "vlb"}},
}


@pytest.mark.parametrize("values", [{}, {"network": {"kind": "mlp", "width": 16}}, LEARNED])
def test_the_same_network_begins_with_all_of_it(tmp_path, values):
    package(tmp_path, seed=1, **values)
    objective, _ = made(seed=2, **values)
    load_initial(objective, tmp_path)
    expected, _ = made(seed=1, **values)
    found = fitting(shapes(objective), packaged_shapes(tmp_path))
    assert set(found.taken) == set(dict(expected.named_parameters()))
    assert (found.new, found.unused) == ({}, ())
    for name, value in expected.named_parameters():
        assert torch.equal(dict(objective.named_parameters())[name], value)


@pytest.mark.parametrize(
    ("before", "now", "shape", "new"),
    [
        ({"classes": 3}, {"classes": 5}, SHAPE, {"network.model.class_embedding.weight": "4 x 32 there, 6 x 32 here"}),
        ({}, {"classes": 3}, SHAPE, {"network.model.class_embedding.weight": "not there"}),
        (
            {},
            {},
            (3, 8, 8),
            {
                "network.model.conv_in.weight": "8 x 1 x 3 x 3 there, 8 x 3 x 3 x 3 here",
                "network.model.conv_out.weight": "1 x 8 x 3 x 3 there, 3 x 8 x 3 x 3 here",
                "network.model.conv_out.bias": "1 there, 3 here",
            },
        ),
    ],
)
def test_other_classes_and_channels_say_what_is_new_and_keep_its_random_values(tmp_path, before, now, shape, new):
    package(tmp_path, seed=1, network=UNET | before)
    objective, _ = made(seed=2, shape=shape, network=UNET | now)
    untouched = {name: value.clone() for name, value in objective.named_parameters()}
    load_initial(objective, tmp_path)
    found = fitting(shapes(objective), packaged_shapes(tmp_path))
    assert found.new == new
    assert f"new: {next(iter(new))} ({next(iter(new.values()))})" in found.describe()
    theirs = dict(made(1, network=UNET | before)[0].named_parameters())
    for name, value in objective.named_parameters():
        assert torch.equal(value, untouched[name] if name in new else theirs[name])


def test_parts_that_are_not_used_are_named(tmp_path):
    package(tmp_path, network=UNET | {"classes": 3})
    found = fitting(shapes(made()[0]), packaged_shapes(tmp_path))
    assert found.unused == ("network.model.class_embedding.weight",)
    assert "; not used: network.model.class_embedding.weight" in found.describe()


def named(tmp_path: Path, reference: str, registry=None, **training) -> RunConfig:
    training = {"init_from": reference, **training}
    run = {"storage": str(tmp_path / "storage"), "tracking_uri": "http://127.0.0.1:9"}
    return resolve(validate({"network": UNET, "training": training, "run": run}), registry)


def test_the_method_is_named_by_the_packages_digest_and_not_by_its_place(tmp_path):
    digest = package(tmp_path / "run/package")
    shutil.copytree(tmp_path / "run/package", tmp_path / "copy")
    asked = []

    def registry(*what: str) -> str:
        asked.append(what)
        return digest

    configs = [
        named(tmp_path, str(tmp_path / "run")),
        named(tmp_path, str(tmp_path / "run/package")),
        named(tmp_path, str(tmp_path / "copy")),
        named(tmp_path, "digits@champion", registry),
        named(tmp_path, "/gone", init_sha256=digest),
    ]
    assert {config.training.init_sha256 for config in configs} == {digest}
    assert len({config.method_sha256 for config in configs}) == 1
    assert len({config.run.name for config in configs}) == 1
    assert asked == [("digits", "champion", "http://127.0.0.1:9")]
    package(tmp_path / "other", seed=5)
    assert named(tmp_path, str(tmp_path / "other")).method_sha256 != configs[0].method_sha256
    assert validate({"network": UNET}).method_sha256 != configs[0].method_sha256


def test_a_run_goes_on_whatever_the_same_package_is_called(tmp_path):
    package(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    begun = named(tmp_path, str(tmp_path / "a"))
    register_name(begun, RunPaths.of(begun), "d" * 64)
    assert resolve_run(named(tmp_path, str(tmp_path / "b"))).state == "resumable"
    shutil.rmtree(tmp_path / "a")  # a run that is named begins with what it has begun with, there or not
    run = {"storage": str(tmp_path / "storage"), "tracking_uri": "http://127.0.0.1:9", "name": begun.run.name}
    again = validate({"network": UNET, "training": {"init_from": str(tmp_path / "a")}, "run": run})
    assert resolve_run(resolve(again)).state == "resumable"
    package(tmp_path / "b", seed=7)
    other = named(tmp_path, str(tmp_path / "b"))
    other = other.model_copy(update={"run": other.run.model_copy(update={"name": begun.run.name})})
    with pytest.raises(InputError, match=r"training\.init_sha256 is .* there and .* here"):
        resolve_run(other)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("/no/such", "training.init_from = '/no/such': no such folder; allowed: the folder of a package or of a run"),
        ("name@", "no such folder"),
        ("name@alias", "allowed here: the folder of a package or of a run"),
        ("{}", "has no package; allowed"),
    ],
)
def test_what_is_no_package_is_refused(tmp_path, reference, said):
    with pytest.raises(InputError, match=said.replace(".", r"\.")):
        named(tmp_path, reference.format(tmp_path))


def test_a_digest_that_is_given_is_not_looked_up_and_must_be_the_packages_when_it_is_used(tmp_path):
    package(tmp_path / "a")
    config = named(tmp_path, str(tmp_path / "a"), init_sha256="0" * 64)
    with pytest.raises(InputError, match=r"is package .* by now; the run is to begin with 0000"):
        prepare_initial(config, RunPaths.of(config), SHAPE)
    with pytest.raises(InputError, match=r"training\.init_from is null"):
        resolve(validate({"training": {"init_sha256": "0" * 64}, "run": {"storage": str(tmp_path)}}))


def test_the_package_is_copied_to_the_run_and_verified(tmp_path):
    package(tmp_path / "a")
    config = named(tmp_path, str(tmp_path / "a"))
    paths = RunPaths.of(config)
    assert prepare_initial(config, paths, SHAPE).new == {}
    shutil.rmtree(tmp_path / "a")
    assert prepare_initial(config, paths, SHAPE).new == {}  # the run has its own copy
    (paths.initial / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"training\.init_from = .*: no such folder"):
        prepare_initial(config, paths, SHAPE)
    package(tmp_path / "a", seed=3)
    with pytest.raises(InputError, match=r"is package .* by now; the run is to begin with"):
        prepare_initial(config, paths, SHAPE)
    (tmp_path / "a" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"training\.init_from = .*model\.safetensors: SHA-256 is"):
        prepare_initial(config, paths, SHAPE)


def test_what_is_verified_is_the_runs_own_copy(tmp_path, monkeypatch):
    """Whoever owns the package may replace its files at any time, by links to files of this user too."""
    package(tmp_path / "a")
    config = named(tmp_path, str(tmp_path / "a"))
    paths = RunPaths.of(config)
    (tmp_path / "private").write_text("a secret")

    def swapped(folder: Path) -> None:
        checked(folder)
        (tmp_path / "a" / "model.safetensors").unlink()
        (tmp_path / "a" / "model.safetensors").symlink_to(tmp_path / "private")

    checked = check_files
    monkeypatch.setattr("diffusion.package.check_files", swapped)
    with pytest.raises(InputError, match=r"training\.init_from = .*SHA-256 is|a link or no file"):
        prepare_initial(config, paths, SHAPE)
    assert not paths.initial.exists()


def test_a_package_of_which_nothing_fits_is_refused(tmp_path):
    package(tmp_path / "a", network={"kind": "mlp", "width": 16})
    config = named(tmp_path, str(tmp_path / "a"))
    with pytest.raises(InputError, match=r"no part of it fits network\.kind = unet"):
        prepare_initial(config, RunPaths.of(config), SHAPE)
