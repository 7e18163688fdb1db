"""The package: what is loaded is what was saved, or one line says why not."""

import json
import os

import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion.config import (
    Ancestral,
    ClassifierFree,
    DdpmProcess,
    EdmSchedule,
    LearnedSchedule,
    LinearSchedule,
    MLPConfig,
    SubVpProcess,
    UNetConfig,
    VeProcess,
    VpProcess,
)
from diffusion.network import build_network
from diffusion.package import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    PackageConfig,
    PackageError,
    build_denoiser_network,
    file_sha256,
    load_package,
    package_sha256,
    save_package,
    verify_package,
)
from diffusion.process.learned_schedule import LearnedLogSnr
from diffusion.solvers import ImageNoise, solve

SHAPE = (1, 4, 4)
SETTINGS = PackageConfig(
    process=DdpmProcess(schedule=LinearSchedule(beta_end=0.01), num_train_timesteps=50, reverse_variance="beta_tilde"),
    prediction="score",
    network=MLPConfig(width=16, depth=2),
    image_shape=SHAPE,
    solver=Ancestral(num_steps=7),
)


def network(config=SETTINGS.network, shape=SHAPE):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_network(config, shape)


@pytest.fixture
def package(tmp_path):
    save_package(tmp_path / "package", SETTINGS, network().state_dict())
    return tmp_path / "package"


def sign(folder):
    """Make the manifest agree with whatever the files now hold."""
    digests = {name: file_sha256(folder / name) for name in (CONFIG, WEIGHTS)}
    (folder / MANIFEST).write_text(json.dumps({"files": digests, "package_sha256": package_sha256(digests)}))


def test_what_is_loaded_is_what_was_saved(package):
    denoiser, config = load_package(package)
    assert config == SETTINGS
    assert isinstance(denoiser.network, torch.nn.Module)
    assert not denoiser.network.training
    assert denoiser.prediction == "score"
    x, t = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 20, 50])
    assert torch.equal(denoiser.network(x, t, None), network().eval()(x, t))
    assert torch.equal(denoiser.epsilon(x, t), -network().eval()(x, t - 1.0))
    assert denoiser.process.num_steps == 50
    assert denoiser.process.reverse_variance == "beta_tilde"
    assert denoiser.null_label is None


def test_a_unet_survives_too(tmp_path):
    config = SETTINGS.model_copy(
        update={"network": UNetConfig(channels=(8, 16), norm_groups=4), "image_shape": (3, 8, 8)}
    )
    original = network(config.network, (3, 8, 8)).eval()
    save_package(tmp_path, config, original.state_dict())
    denoiser, loaded = load_package(tmp_path)
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 20])
    assert loaded == config
    assert torch.equal(denoiser.network(x, t, None), original(x, t))


def learned_package(folder, steps=30, width=12):
    """A package with a schedule that has learned something, and that schedule."""
    config = SETTINGS.model_copy(
        update={"process": VpProcess(num_train_timesteps=steps, schedule=LearnedSchedule(width=width))}
    )
    schedule = LearnedLogSnr(width, 13.3, -13.3)
    with torch.no_grad():
        for number, parameter in enumerate(schedule.parameters()):
            parameter += torch.linspace(-1, 1, len(parameter)) * (number + 1)
    own = {f"schedule.{name}": value for name, value in schedule.state_dict().items()}
    save_package(folder, config, {**network().state_dict(), **own})
    return schedule


CLASSED = SETTINGS.model_copy(update={"network": MLPConfig(width=16, depth=2, classes=3)})


@pytest.mark.parametrize("trained", [True, None])
def test_a_network_that_was_or_may_have_been_trained_without_labels_can_do_without(tmp_path, trained):
    config = CLASSED.model_copy(update={"null_label_trained": trained})
    save_package(tmp_path, config, network(CLASSED.network).state_dict())
    assert ("null_label_trained" in json.loads((tmp_path / CONFIG).read_text())) == (trained is not None)
    denoiser, read = load_package(tmp_path)
    assert (read.null_label_trained, denoiser.null_label, denoiser.needs_label) == (trained, 3, False)
    noise = ImageNoise(0, [0, 1], SHAPE)
    solve(denoiser, noise, Ancestral(num_steps=2))
    solve(denoiser, noise, Ancestral(num_steps=2), torch.tensor([0, 1]), ClassifierFree(scale=2.0))


def test_a_network_that_was_never_trained_without_labels_refuses_guidance_and_rows_without_one(tmp_path):
    config = CLASSED.model_copy(update={"null_label_trained": False})
    save_package(tmp_path, config, network(CLASSED.network).state_dict())
    denoiser, _ = load_package(tmp_path)
    noise, label = ImageNoise(0, [0, 1], SHAPE), torch.tensor([0, 1])
    solve(denoiser, noise, Ancestral(num_steps=2), label)
    with pytest.raises(ValueError, match="needs one for every row"):
        solve(denoiser, noise, Ancestral(num_steps=2))
    with pytest.raises(ValueError, match=r"trained with one for none \(objective.label_dropout above 0\)"):
        solve(denoiser, noise, Ancestral(num_steps=2), label, ClassifierFree(scale=2.0))


def test_a_learned_schedule_comes_with_its_network_and_is_frozen(tmp_path):
    schedule = learned_package(tmp_path)
    denoiser, _ = load_package(tmp_path)
    t = torch.linspace(0.01, 1, 9, dtype=torch.float64)
    assert torch.equal(denoiser.process.log_snr(t), schedule.log_snr(t).detach())
    assert not denoiser.process.log_snr(t).requires_grad
    assert isinstance(denoiser.network, torch.nn.Module)
    assert set(denoiser.network.state_dict()) == set(network().state_dict())


def test_a_learned_schedule_that_is_missing_or_of_another_width_is_refused(tmp_path):
    learned_package(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["process"]["schedule"]["width"] = 13
    (tmp_path / CONFIG).write_text(json.dumps(config))
    sign(tmp_path)
    with pytest.raises(PackageError, match="do not fit the network"):
        load_package(tmp_path)
    missing = SETTINGS.model_copy(update={"process": VpProcess(schedule=LearnedSchedule())})
    save_package(tmp_path, missing, network().state_dict())
    with pytest.raises(PackageError, match=r"'schedule\.raw_.*' is missing"):
        load_package(tmp_path)


@pytest.mark.parametrize("process", [VpProcess(), SubVpProcess(), VeProcess()], ids=lambda p: p.kind)
def test_processes_predictions_and_labels_survive(tmp_path, process):
    config = PackageConfig(
        process=process, prediction="edm", sigma_data=0.3, network=MLPConfig(width=8, classes=4), image_shape=SHAPE
    )
    original = build_denoiser_network(config)
    save_package(tmp_path, config, original.state_dict())
    denoiser, loaded = load_package(tmp_path)
    assert loaded == config
    assert type(denoiser.process).__name__.lower() == process.kind.replace("_", "")
    assert (denoiser.prediction, denoiser.sigma_data, denoiser.null_label) == ("edm", 0.3, 4)
    x, t = torch.zeros(2, *SHAPE), torch.tensor([0.2, 0.9], dtype=torch.float64)
    assert torch.equal(denoiser.x0(x, t), denoiser.x0(x, t, torch.tensor([4, 4])))


def test_a_learned_variance_makes_a_network_of_twice_the_channels(tmp_path):
    process = DdpmProcess(num_train_timesteps=20, reverse_variance="learned")
    config = SETTINGS.model_copy(update={"process": process})
    save_package(tmp_path, config, build_denoiser_network(config).state_dict())
    denoiser, _ = load_package(tmp_path)
    assert denoiser.learned_variance
    assert denoiser.output(torch.zeros(1, *SHAPE), torch.tensor([3])).shape == (1, 2, 4, 4)
    save_package(tmp_path, config, network().state_dict())  # of a network that gives the prediction alone
    with pytest.raises(PackageError, match="do not fit the network"):
        load_package(tmp_path)


def test_a_signed_process_that_cannot_be_is_refused(tmp_path):
    process = VpProcess(schedule=EdmSchedule(), log_snr_max=-30.0, log_snr_min=-31.0)
    save_package(tmp_path, SETTINGS.model_copy(update={"process": process}), network().state_dict())
    with pytest.raises(PackageError, match=r"config\.json: process\.schedule: log-SNR must fall"):
        load_package(tmp_path)


def test_digest_depends_on_content_and_on_nothing_else(tmp_path):
    weights = network().state_dict()
    reversed_order = dict(reversed(list(weights.items())))
    first, second = (
        save_package(tmp_path / "a", SETTINGS, weights),
        save_package(tmp_path / "b", SETTINGS, reversed_order),
    )
    assert first == second == verify_package(tmp_path / "a")
    changed = {name: tensor + 1e-3 for name, tensor in weights.items()}
    assert save_package(tmp_path / "c", SETTINGS, changed) != first
    other = SETTINGS.model_copy(update={"prediction": "epsilon"})
    assert save_package(tmp_path / "d", other, weights) != first


def test_saving_again_replaces(package):
    save_package(package, SETTINGS, {name: torch.zeros_like(w) for name, w in network().state_dict().items()})
    denoiser, _ = load_package(package)
    with torch.inference_mode():
        assert torch.equal(denoiser.network(torch.ones(1, *SHAPE), torch.tensor([1]), None), torch.zeros(1, *SHAPE))


@given(st.sampled_from([CONFIG, WEIGHTS]), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(deadline=None, max_examples=40)
def test_any_flipped_byte_is_found(tmp_path_factory, name, place, mask):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not (folder / MANIFEST).exists():
        save_package(folder, SETTINGS, network().state_dict())
    original = (folder / name).read_bytes()
    position = int(place * len(original))
    (folder / name).write_bytes(original[:position] + bytes([original[position] ^ mask]) + original[position + 1 :])
    try:
        with pytest.raises(PackageError, match=f"{name}: SHA-256 is"):
            load_package(folder)
    finally:
        (folder / name).write_bytes(original)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, MANIFEST])
def test_a_missing_file_is_named(package, name):
    (package / name).unlink()
    with pytest.raises(PackageError, match=name.replace(".", r"\.")):
        load_package(package)


@pytest.mark.parametrize(
    "content", [b"", b"not json", b"[]", b"{}", b'{"files": 3, "package_sha256": ""}', b"\xff\xfe{", b"null"]
)
def test_a_manifest_that_is_none_is_refused(package, content):
    (package / MANIFEST).write_bytes(content)
    with pytest.raises(PackageError, match="not a package manifest"):
        verify_package(package)


def test_a_manifest_of_other_files_is_refused(package):
    manifest = json.loads((package / MANIFEST).read_text())
    manifest["files"]["../escape"] = "0" * 64
    (package / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match="escape"):
        verify_package(package)


def test_a_manifest_that_contradicts_itself_is_refused(package):
    manifest = json.loads((package / MANIFEST).read_text())
    (package / MANIFEST).write_text(json.dumps({**manifest, "package_sha256": "0" * 64}))
    with pytest.raises(PackageError, match="package_sha256 is not that of its files"):
        verify_package(package)


def test_a_digest_that_is_no_string_is_refused(package):
    manifest = json.loads((package / MANIFEST).read_text())
    manifest["files"][CONFIG] = 5
    (package / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(PackageError):
        verify_package(package)


def test_weights_of_another_network_are_refused(package):
    save_package(package, SETTINGS, network(MLPConfig(width=32, depth=2)).state_dict())
    with pytest.raises(PackageError, match="do not fit the network"):
        load_package(package)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_weights_with_other_names_are_refused(package, change):
    weights = dict(network().state_dict())
    if change == "missing":
        del weights["enter.bias"]
    else:
        weights["surplus"] = torch.zeros(1)
    save_package(package, SETTINGS, weights)
    with pytest.raises(PackageError, match=r"enter\.bias|surplus"):
        load_package(package)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("network", "kind"), "os.system"),
        (("format_version",), 1),
        (("format_version",), 3),
        (("process", "kind"), "logistic"),
        (("sigma_data",), 0),
        (("image_shape",), [1, 4]),
        (("process", "num_train_timesteps"), 1),
        (("surplus",), 1),
    ],
)
def test_a_signed_config_that_is_not_valid_is_refused(package, path, value):
    config = json.loads((package / CONFIG).read_text())
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    (package / CONFIG).write_text(json.dumps(config))
    sign(package)
    version = rf"format_version = {value}; allowed: 2; networks of format 1 were told other times"
    with pytest.raises(PackageError, match=r"config\.json: " + (version if path == ("format_version",) else path[0])):
        load_package(package)


def test_signed_weights_that_are_no_safetensors_file_are_refused(package):
    (package / WEIGHTS).write_bytes(b"\x80\x04pickle" * 10)
    sign(package)
    with pytest.raises(PackageError, match=WEIGHTS):
        load_package(package)


def test_a_signed_network_that_does_not_fit_its_image_shape_is_refused(package):
    save_package(
        package, SETTINGS.model_copy(update={"network": UNetConfig(channels=(8, 8)), "image_shape": (1, 7, 7)}), {}
    )
    with pytest.raises(PackageError, match=r"config\.json"):
        load_package(package)


def test_a_save_that_dies_half_way_never_verifies(package, monkeypatch):
    """Even over a good package: the old manifest goes first."""

    def die(source, destination):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        save_package(package, SETTINGS, network().state_dict())
    with pytest.raises(PackageError, match="not a complete package"):
        load_package(package)


def test_class_names_go_along_and_are_those_of_all_classes(tmp_path):
    values = CLASSED.model_dump()
    names = ("ant", "bee", "cat")
    config = PackageConfig.model_validate(values | {"class_names": names})
    save_package(tmp_path, config, build_denoiser_network(config).state_dict())
    assert load_package(tmp_path)[1].class_names == names
    assert [config.class_index(label) for label in ("bee", 1, "1", None)] == [1, 1, 1, None]
    for wrong in (("ant",), ("ant", "bee", "bee")):
        with pytest.raises(ValueError, match="allowed: 3 different ones"):
            PackageConfig.model_validate(values | {"class_names": wrong})
    save_package(tmp_path / "without", CLASSED, build_denoiser_network(CLASSED).state_dict())
    assert "class_names" not in json.loads((tmp_path / "without" / CONFIG).read_text())
