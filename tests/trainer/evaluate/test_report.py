"""The two-view report says what was measured, whole in one file, and leaves out what was not."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.likelihood.screening import DenoisingCurve
from trainer.evaluate.report.html import write_report
from trainer.evaluate.report.panels import panels

CURVE = DenoisingCurve(
    log_snr=torch.linspace(10, -10, 12, dtype=torch.float64),
    mse=torch.linspace(40, 1, 12, dtype=torch.float64).repeat(3, 1) * torch.tensor([[0.9], [1.0], [1.1]]),
    x0_mse=torch.ones(3, 12, dtype=torch.float64),
    second_moment=20.0,
    reconstruction=torch.linspace(30, 300, 12, dtype=torch.float64),
    dimensions=64,
    package_sha256="a" * 64,
    dataset_fingerprint="d" * 64,
    images=48,
)
FULL = {
    "model": "<b>mine</b>",
    "package_sha256": "a" * 64,
    "dataset_fingerprint": "d" * 64,
    "evaluation": {"metrics": ["vlb", "nll", "denoising", "frechet"], "solver": {"kind": "ddim"}},
    **{f"vlb_{term}bpd": value for term, value in (("", 4.5), ("prior_", 0.1), ("diffusion_", 3.0))},
    "vlb_reconstruction_bpd": 1.4,
    "vlb_bpd_se": 0.02,
    "nll_bpd": 4.7,
    "nll_bpd_se": 0.03,
    "samples": 500,
    "extractors": {"classifier": {"sha256": "c" * 64}},
    "frechet_classifier": 5.0,
    "frechet_classifier_se": 0.4,
    "frechet_classifier_infinite": -0.1,
    "frechet_classifier_infinite_se": 0.5,
    "frechet_classifier_gaussian": 60.0,
    "frechet_classifier_noise": 600.0,
    "frechet_at_nfe": {"frechet_classifier": [{"nfe": 5, "value": 9.0, "se": 1.0}, {"nfe": 20, "value": 5.0}]},
    "classes": {"samples": [3, 2], "train": [5, 5], "heldout": [2, 2]},
    "notes": ["no memorisation check: most held-out images are training images too"],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "denoising.json").write_text(CURVE.to_json())
    for name in ("samples.png", "neighbours.png"):
        Image.fromarray(np.zeros((20, 40), np.uint8)).save(tmp_path / name)
    return tmp_path


def test_a_full_evaluation_shows_both_views_in_one_file(folder):
    likelihood, sample = panels(FULL, folder)
    assert (len(likelihood), len(sample)) == (2, 5)
    page = write_report(folder, FULL).read_text()
    assert page.count("data:image/png;base64,") == 7
    assert not re.search(r"https?://|src=\"(?!data:)", page)
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    assert "<tr><td>vlb_bpd<td class=number>4.5<td>± 0.02" in page
    assert "Note: no memorisation check" in page
    assert page.count("<tr>") == 1 + 9 + 1 + 12  # numbers, and the curve's points
    with Image.open(folder / "report.png") as picture:
        assert picture.size[0] > 1000


def test_only_what_was_measured_is_shown(tmp_path):
    values = {name: FULL[name] for name in ("model", "package_sha256", "dataset_fingerprint", "nll_bpd", "nll_bpd_se")}
    values["evaluation"] = {"metrics": ["nll"], "solver": {"kind": "ddim"}}
    likelihood, sample = panels(values, tmp_path)
    assert (len(likelihood), len(sample)) == (1, 0)
    assert "Not measured." in write_report(tmp_path, values).read_text()


def test_a_curve_that_another_evaluation_left_is_not_shown(folder):
    values = {**FULL, "evaluation": {"metrics": ["vlb"], "solver": {"kind": "ddim"}}}
    assert len(panels(values, folder)[0]) == 1
    assert "error a dimension" not in write_report(folder, values).read_text()


def test_the_report_is_the_same_each_time(folder):
    pages = [write_report(folder, json.loads(json.dumps(FULL))).read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]
