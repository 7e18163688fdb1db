"""`python -m tuning screen`: what a curve says of schedules, what it cannot, and what it refuses."""

import json

import pytest
import torch
from PIL import Image

from diffusion.likelihood.screening import DenoisingCurve
from tuning.__main__ import main


@pytest.fixture
def curve(tmp_path):
    log_snr = torch.linspace(10.5, -12, 96, dtype=torch.float64)
    error = 64 * torch.sigmoid(log_snr - 4)
    found = DenoisingCurve(
        log_snr=log_snr,
        mse=error * torch.tensor([[0.98], [1.0], [1.02]], dtype=torch.float64),
        x0_mse=(error / log_snr.exp()).clamp(max=30) * torch.tensor([[0.98], [1.0], [1.02]], dtype=torch.float64),
        second_moment=30.0,
        reconstruction=300 * torch.sigmoid(6 - log_snr),
        dimensions=64,
        package_sha256="a" * 64,
        dataset_fingerprint="d" * 64,
        images=360,
    )
    (tmp_path / "denoising.json").write_text(found.to_json())
    return tmp_path


def screened(capsys, *arguments):
    assert main(["screen", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_schedules_are_sorted_by_their_gap_and_those_outside_the_curve_are_named(curve, capsys):
    found = screened(capsys, curve)
    inside = [row for row in found if row["screened"]]
    gaps = [row["screened"]["gap"]["value"] for row in inside]
    assert gaps == sorted(gaps)
    assert found[: len(inside)] == inside
    outside = {row["label"]: row["problem"] for row in found[len(inside) :]}
    assert "allowed: within -12.00 to 10.50" in outside["cosine, T = 1000"]
    assert {row["label"].partition(",")[0] for row in found} >= {"linear", "cosine", "quadratic", "sigmoid", "laplace"}


def test_a_schedule_and_its_steps_may_be_named(curve, capsys):
    schedule = "{kind: linear, beta_end: 0.01}"
    (row,) = screened(capsys, curve / "denoising.json", "--schedule", schedule, "--steps", "500")
    assert row["label"] == "{kind: linear, beta_end: 0.01}, T = 500"
    assert row["process"]["schedule"]["beta_end"] == 0.01
    beta, tilde = (
        screened(capsys, curve, "--schedule", "linear", "--steps", "100", "--reverse-variance", kind)[0]["screened"]
        for kind in ("beta", "beta_tilde")
    )
    assert beta["gap"] != tilde["gap"]
    assert beta["continuous_vlb"] == tilde["continuous_vlb"]


def test_in_continuous_time_schedules_have_the_ends_of_the_curve_and_one_bound(curve, capsys):
    schedules = ("--schedule", "cosine", "--schedule", "geometric", "--schedule", "{kind: edm, p_std: 1.5e0}")
    rows = screened(capsys, curve, "--process", "vp", *schedules, "--steps", "250")
    assert {row["label"] for row in rows} == {f"vp {name}, T = 250" for name in schedules[1::2]}
    assert all(row["screened"]["log_snr"] == pytest.approx([-12.0, 10.5], abs=1e-5) for row in rows)
    bounds = [row["screened"]["continuous_vlb"]["value"] for row in rows]
    assert bounds == pytest.approx([bounds[0]] * 3, rel=1e-6)
    gaps = [row["screened"]["gap"]["value"] for row in rows]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 1.2 * gaps[0]


def test_schedules_without_ends_get_those_of_the_curve(curve, capsys):
    rows = {row["label"]: row["screened"] for row in screened(capsys, curve)}
    assert {"linear, T = 100", "geometric, T = 1000"} <= set(rows)
    assert not any(label.startswith("vp ") for label in rows)
    assert rows["geometric, T = 1000"]["log_snr"] == pytest.approx([-12.0, 10.5], abs=1e-5)


def test_a_table_and_a_picture(curve, capsys):
    picture = curve / "screen.png"
    assert main(["screen", str(curve), "--out", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "linear, T = 1000" in out
    assert "Sample quality is not predicted" in out
    with Image.open(picture) as image:
        assert image.size == (1320, 480)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "allowed: denoising.json of `python -m trainer.evaluate MODEL --metrics denoising`"),
        (["{curve}", "--schedule", "linaer"], "--schedule linaer: "),
        (["{curve}", "--schedule", "[1"], "--schedule [1: not YAML; allowed: a kind, or a mapping"),
        (["{curve}", "--schedule", "learned"], "--schedule learned: is trained together with its network"),
        (["{curve}", "--schedule", "linear", "--steps", "5"], "--schedule linear: num_train_timesteps = 5"),
        (["{curve}", "--out", "a.jpg"], "allowed: a file that ends in .png"),
        (["{curve}", "--out", "/nowhere/a.png"], "allowed: a writable file"),
    ],
)
def test_bad_input_is_one_line(curve, capsys, arguments, message):
    assert main(["screen", *(argument.format(curve=curve) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_spoilt_curve_is_refused(curve, capsys):
    (curve / "denoising.json").write_text("{}")
    assert main(["screen", str(curve)]) == 2
    assert "not a denoising curve" in capsys.readouterr().err
