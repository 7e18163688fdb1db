"""A curve of denoising errors, and what it says of schedules that the network was not trained with."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from diffusion.screening import DenoisingCurve


def some_curve() -> DenoisingCurve:
    log_snr = np.linspace(10, -12, 45)
    mse = np.array([[1.0], [1.1], [0.95]]) / (1 + np.exp(-log_snr)) * 4
    return DenoisingCurve(
        log_snr=log_snr,
        mse=mse,
        clipped_mse=mse * 0.9,
        reconstruction=np.linspace(0, 30, 45),
        second_moment=2.1,
        dimensions=4,
        images=60,
        package_sha256="ab" * 32,
        dataset_fingerprint="cd" * 32,
    )


def test_a_curve_is_read_as_it_was_written(tmp_path: Path):
    curve, file = some_curve(), tmp_path / "denoising.json"
    curve.save(file)
    read, written = asdict(DenoisingCurve.load(file)), asdict(curve)
    for name, value in written.items():
        np.testing.assert_array_equal(read[name], value)
    assert curve.range == (10.0, -12.0)


def changed(name: str, index: int, value: float) -> dict:
    array = getattr(some_curve(), name).copy()
    array.flat[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed("log_snr", 3, 12.0), "log_snr: allowed: falling"),
        (changed("log_snr", 3, np.nan), "log_snr: NaN or infinity"),
        (changed("mse", 7, np.inf), "mse: NaN or infinity"),
        (changed("mse", 7, 0.0), "mse: 0; allowed: above 0"),
        (changed("clipped_mse", 7, -1.0), "clipped_mse: -1; allowed: above 0"),
        (changed("reconstruction", 7, -1.0), "reconstruction: -1; allowed: at least 0"),
        ({"mse": np.ones((3, 44))}, r"mse: shape \(3, 44\); allowed: \(3, 45\)"),
        ({"clipped_mse": np.ones((2, 45))}, r"clipped_mse: shape \(2, 45\); allowed: \(3, 45\)"),
        ({"reconstruction": np.ones(44)}, r"reconstruction: shape \(44,\); allowed: \(45,\)"),
        ({"mse": np.ones((1, 45))}, "1 groups; allowed: at least 2"),
        ({"log_snr": np.ones((45, 1))}, "allowed: at least 2 of each"),
        ({"second_moment": -1.0}, "second_moment = -1.0"),
        ({"images": 0}, "images = 0"),
    ],
)
def test_what_is_no_curve_is_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(some_curve(), **changes)


@pytest.mark.parametrize("text", ["{}", "[1]", "not JSON", "null"])
def test_a_file_that_holds_no_curve_is_named(tmp_path: Path, text: str):
    file = tmp_path / "denoising.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"denoising.json: no curve of denoising errors"):
        DenoisingCurve.load(file)


def test_a_file_with_a_part_missing_or_of_another_kind_is_refused(tmp_path: Path):
    file = tmp_path / "denoising.json"
    some_curve().save(file)
    values = json.loads(file.read_text())
    for change in ({"dimensions": "four"}, {"mse": 3.0}, {"mse": "x"}):
        file.write_text(json.dumps({**values, **change}))
        with pytest.raises(ValueError, match="no curve of denoising errors"):
            DenoisingCurve.load(file)
