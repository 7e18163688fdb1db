"""Better, worse or undecided: what can be said of two evaluations, and what cannot."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from safetensors.numpy import save_file

from trainer import compare as command
from trainer.errors import InputError
from trainer.evaluate.comparison import ComparedModel, compare, read
from trainer.run.summary import evaluated_from_json

DATA = "d" * 64
EXTRACTORS = {"classifier": {"sha256": "c" * 64}}


def evaluated(name="a", per_image=None, **values):
    common = {"dataset_fingerprint": DATA, "samples": 500, "extractors": EXTRACTORS}
    found = {**common, **values}
    return ComparedModel(name, found["dataset_fingerprint"], evaluated_from_json(found), per_image or {})


def bpd(value, error: float | None = 0.02, **others):
    return evaluated(vlb_bpd=value, vlb_bpd_se=error, **others)


@pytest.mark.parametrize(
    ("metric", "first", "other", "word"),
    [
        ("vlb_bpd", 4.5, 4.4, "better"),
        ("vlb_bpd", 4.4, 4.5, "worse"),
        ("vlb_bpd", 4.50, 4.45, "undecided"),
        ("frechet_classifier", 5.0, 4.0, "better"),
        ("fid", 5.0, 4.0, "better"),
        ("kid_classifier", 5.0, 4.0, "better"),
        ("precision", 0.5, 0.6, "better"),
        ("recall", 0.6, 0.5, "worse"),
    ],
)
def test_a_difference_beyond_the_errors_decides_in_the_metrics_direction(metric, first, other, word):
    extractors = EXTRACTORS | {"inception": {"sha256": "i" * 64}}
    a, b = (evaluated(**{metric: value, f"{metric}_se": 0.02, "extractors": extractors}) for value in (first, other))
    assert compare(a, b, metric).word == word


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(1e-3, 1), st.floats(1e-3, 1), st.floats(0.5, 5))
def test_verdicts_turn_round_with_their_sides(a, b, se_a, se_b, sigmas):
    turned = {"better": "worse", "worse": "better", "undecided": "undecided"}
    there = compare(bpd(a, se_a), bpd(b, se_b), "vlb_bpd", sigmas)
    back = compare(bpd(b, se_b), bpd(a, se_a), "vlb_bpd", sigmas)
    assert there.word == turned[back.word]
    assert there.standard_error == pytest.approx(math.hypot(se_a, se_b))
    assert (there.word == "undecided") == (abs(b - a) <= sigmas * math.hypot(se_a, se_b) or a == b)


def test_the_same_images_tell_smaller_differences():
    """Images differ by 0.4 bits, models by 0.01 with a spread of 0.02 an image: 400 images make 10 standard errors."""
    rng = np.random.default_rng(0)
    images = rng.normal(4.5, 0.4, 400)
    a = bpd(float(images.mean()), 0.02, per_image={"vlb_bpd": images})
    better = images - 0.01 + rng.normal(0, 0.02, 400)
    b = bpd(float(better.mean()), 0.02, name="b", per_image={"vlb_bpd": better})
    found = compare(a, b, "vlb_bpd")
    assert found.word == "better"
    assert found.difference == pytest.approx((better - images).mean())
    assert found.standard_error == pytest.approx((better - images).std(ddof=1) / 20)
    assert "paired" in found.reason
    assert compare(bpd(4.5, 0.02), bpd(4.49, 0.02), "vlb_bpd").word == "undecided"


@pytest.mark.parametrize(
    ("other", "metric", "reason"),
    [
        (evaluated("b"), "vlb_bpd", "vlb_bpd was not measured of b"),
        (bpd(float("nan"), name="b"), "vlb_bpd", "not measured of b"),
        (bpd(4.0, None, name="b"), "vlb_bpd", "vlb_bpd of b has no standard error"),
        (bpd(4.0, float("inf"), name="b"), "vlb_bpd", "no standard error"),
        (bpd(4.0, dataset_fingerprint="e" * 64), "vlb_bpd", "dataset_fingerprint is eeeeeeeeeeeeeeee, not dddd"),
        (evaluated(frechet_classifier=4.0, frechet_classifier_se=0.1, samples=501), "frechet_classifier", "samples"),
        (
            evaluated(frechet_classifier=4.0, frechet_classifier_se=0.1, extractors={"classifier": {"sha256": "x"}}),
            "frechet_classifier",
            "the extractors are not the same",
        ),
    ],
)
def test_what_was_measured_otherwise_is_not_compared(other, metric, reason):
    first = evaluated(vlb_bpd=4.5, vlb_bpd_se=0.02, frechet_classifier=5.0, frechet_classifier_se=0.1)
    found = compare(first, other, metric)
    assert found.word == "not comparable"
    assert reason in found.reason


def write(folder, values, per_image=None, fingerprint=DATA):
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(values))
    if per_image is not None:
        tensors = {"vlb": np.asarray(per_image) * math.log(2) * 64}
        save_file(tensors, folder / "heldout.safetensors", {"dataset_fingerprint": fingerprint, "dimensions": "64"})
    return folder


def test_an_evaluation_is_read_with_its_images_in_bits(tmp_path):
    folder = write(tmp_path / "a", {"dataset_fingerprint": DATA, "vlb_bpd": 4.5}, [4.0, 5.0])
    found = read(folder, "a")
    assert found.per_image["vlb_bpd"] == pytest.approx([4.0, 5.0])
    assert found.metrics == ["vlb_bpd"]
    assert read(folder / "evaluation.json", "a").evaluated == found.evaluated
    other = write(tmp_path / "b", {"dataset_fingerprint": DATA, "vlb_bpd": 4.5}, [4.0, 5.0], "e" * 64)
    assert read(other, "b").per_image == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"vlb_bpd": 1}'])
def test_what_no_evaluation_left_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="no evaluation"):
        read(tmp_path / "nothing", "a")
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(InputError, match="not the output of an evaluation"):
        read(tmp_path, "a")


@pytest.fixture
def three(tmp_path):
    common = {"dataset_fingerprint": DATA, "samples": 500, "extractors": EXTRACTORS, "frechet_classifier_se": 0.1}
    rows = [(4.5, 5.0), (4.3, 5.1), (4.5, 9.0)]
    return [
        str(write(tmp_path / name / "evaluation", {
            **common, "vlb_bpd": vlb, "vlb_bpd_se": 0.02, "frechet_classifier": frechet, "samples_sd": 1.0,
        }))
        for name, (vlb, frechet) in zip("abc", rows, strict=True)
    ]  # fmt: skip


def test_both_views_of_each_run_stand_beside_the_first(three, capsys):
    assert command.main(three) == 0
    out = capsys.readouterr().out
    assert "b beside a: likelihood view: better; sample view: undecided" in out
    assert "c beside a: likelihood view: undecided; sample view: worse" in out
    assert "-0.2 +- 0.028, 7.1 standard errors" in out
    assert command.main([*three, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [other["name"] for other in found["others"]] == ["b", "c"]
    assert found["others"][1]["metrics"]["frechet_classifier"]["word"] == "worse"


def test_views_at_odds_are_said_to_be():
    a = evaluated(vlb_bpd=4.5, vlb_bpd_se=0.01, nll_bpd=4.5, nll_bpd_se=0.01)
    b = evaluated("b", vlb_bpd=4.3, vlb_bpd_se=0.01, nll_bpd=4.7, nll_bpd_se=0.01)
    assert command.views(command.compared([a, b], None, 2.0), 0) == {
        "likelihood view": "better by some, worse by others"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}"], "one has nothing to be compared with"),
        (
            ["{0}", "/nowhere"],
            "no such folder; allowed: a folder, NAME@champion, NAME@3 for version 3, or the id of an",
        ),
        (["{0}", "{1}", "--metrics", "nll_bpd"], "--metrics = nll_bpd: not measured; allowed: vlb_bpd, frechet"),
        (["{0}", "{1}", "--sigmas", "0"], "--sigmas = 0.0; allowed: above 0"),
    ],
)
def test_bad_input_is_one_line(three, capsys, arguments, message):
    assert command.main([argument.format(*three) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
