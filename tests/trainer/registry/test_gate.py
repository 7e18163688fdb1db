"""The gate: each reason to keep a version out, in words, and no other way in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from diffusion.config import DdpmProcess, LinearSchedule, MLPConfig
from diffusion.network import build_network
from diffusion.package import PackageConfig, save_package
from trainer.config.run import GateConfig
from trainer.evaluate.comparison import ComparedModel
from trainer.registry.gate import decide, faults_of, likelihoods_of
from trainer.run.summary import LIKELIHOODS, evaluated_from_json

GATE = GateConfig()


def version(vlb=4.5, error: float | None = 0.02, name="this version", **others):
    values = {"dataset_fingerprint": "d" * 64, "samples": 500, "vlb_bpd": vlb, "vlb_bpd_se": error}
    return compared(name, values | {"continuous_vlb_bpd": 4.6, "nll_bpd": 4.7} | others)


def compared(name, values, per_image=None):
    return ComparedModel(name, values["dataset_fingerprint"], evaluated_from_json(values), per_image or {})


CHAMPION = version(4.5, name="version 3")


def test_the_first_version_that_is_sound_is_champion():
    decision = decide(GATE, version(), [], None)
    assert decision.promoted
    assert decision.reason == "vlb_bpd 4.5 +- 0.02; there was no champion"


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (version(4.3), None),
        (version(4.5), "vlb_bpd 4.5 +- 0.02 beside version 3's 4.5 +- 0.02: undecided"),
        (version(4.46), "undecided"),
        (version(4.7), "worse"),
        (version(4.3, nll_bpd=None), "nll_bpd was not measured (evaluation.metrics)"),
        (version(4.3, nll_bpd=None, continuous_vlb_bpd=float("nan")), "continuous_vlb_bpd, nll_bpd were not measured"),
        (version(4.3, nll_bpd=5.6), "likelihoods do not agree: vlb_bpd 4.300 and nll_bpd 5.600 are more than 1 bits"),
        (version(4.3, dataset_fingerprint="e" * 64), "not comparable with version 3: dataset_fingerprint is eeee"),
        (version(4.3, None), "not comparable with version 3: vlb_bpd of this version has no standard error"),
    ],
)
def test_a_version_must_beat_the_champion_and_be_sound(candidate, reason):
    decision = decide(GATE, candidate, [], CHAMPION)
    assert decision.promoted == (reason is None)
    assert reason is None or reason in decision.reason


def test_faults_of_the_package_keep_a_better_version_out():
    decision = decide(GATE, version(3.0), ["the package is not whole: x"], None)
    assert not decision.promoted
    assert "the package is not whole: x; likelihoods do not agree" in decision.reason


@given(st.floats(3.5, 5.5), st.floats(1e-3, 0.3), st.floats(3.5, 5.5), st.floats(1e-3, 0.3))
def test_no_two_versions_can_each_beat_the_other(a, se_a, b, se_b):
    gate = GateConfig(likelihood_gap=10)
    first, second = version(a, se_a, "a"), version(b, se_b, "b")
    assert not (decide(gate, first, [], second).promoted and decide(gate, second, [], first).promoted)


def test_another_metric_and_more_sigmas_decide_where_they_are_asked_for():
    extractors = {"classifier": {"sha256": "c"}}
    a, b = (
        version(4.5, frechet_classifier=value, frechet_classifier_se=0.2, extractors=extractors) for value in (5.0, 4.0)
    )
    assert decide(GateConfig(metric="frechet_classifier"), b, [], a).promoted
    assert not decide(GateConfig(metric="frechet_classifier", sigmas=4), b, [], a).promoted
    assert "fid, which decides, was not measured" in decide(GateConfig(metric="fid"), b, [], None).reason


def test_the_same_images_decide_pairwise():
    images = np.random.default_rng(0).normal(4.5, 0.5, 200)
    values = {"dataset_fingerprint": "d", "continuous_vlb_bpd": 4.6, "nll_bpd": 4.7, "vlb_bpd_se": 0.04}
    champion = compared("version 1", values | {"vlb_bpd": 4.5}, {"vlb_bpd": images})
    candidate = compared("this version", values | {"vlb_bpd": 4.49}, {"vlb_bpd": images - 0.01})
    assert decide(GATE, candidate, [], champion).promoted


def test_a_model_without_integrals_is_asked_for_its_bound_alone():
    assert decide(GATE, version(nll_bpd=None, continuous_vlb_bpd=None), [], None, ("vlb_bpd",)).promoted


def package(folder: Path, fill: float | None = None, zero: bool = False, classes: int = 0) -> Path:
    schedule = LinearSchedule(zero_terminal_snr=zero)
    config = PackageConfig(
        process=DdpmProcess(num_train_timesteps=40, schedule=schedule),
        prediction="v",
        network=MLPConfig(width=8, depth=1, classes=classes),
        image_shape=(1, 4, 4),
    )
    weights = build_network(config.network, (1, 4, 4)).state_dict()
    if fill is not None:
        weights = {name: torch.full_like(value, fill) for name, value in weights.items()}
    save_package(folder, config, weights)
    return folder


def test_sound_packages_have_no_faults(tmp_path):
    assert faults_of(package(tmp_path / "plain")) == []
    assert faults_of(package(tmp_path / "classes", classes=3)) == []


def test_outputs_that_are_no_numbers_are_a_fault(tmp_path):
    (fault,) = faults_of(package(tmp_path / "nan", fill=float("nan")))
    assert fault.startswith("the package is not whole: ")
    assert fault.endswith("'blocks.0.bias' has weights that are not finite")
    overflows = package(tmp_path / "overflows", fill=3e38)
    assert faults_of(overflows) == ["its outputs are not finite at t = 1, 10.75, 20.5, 30.25, 40"]


def test_a_package_with_another_manifest_is_a_fault(tmp_path):
    folder = package(tmp_path / "changed")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    (fault,) = faults_of(folder)
    assert fault.startswith("the package is not whole: ")


def test_a_terminal_snr_of_zero_leaves_one_likelihood(tmp_path):
    assert likelihoods_of(package(tmp_path / "plain")) == LIKELIHOODS
    assert likelihoods_of(package(tmp_path / "zero", zero=True)) == ("vlb_bpd",)
