"""Scores keep their errors and how they were measured through their files, and old files mean what they meant."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from diffusion.json_text import json_text
from trainer.run.summary import (
    ClassCounts,
    CurvePoint,
    Evaluated,
    ExtractorUsed,
    GateDecision,
    Protocol,
    Registration,
    RunSummary,
    Score,
    evaluated_from_json,
    summary_from_json,
)

numbers = st.floats(allow_nan=False)
protocols = st.none() | st.builds(
    Protocol,
    samples=st.none() | st.integers(1, 9999),
    sampler=st.none() | st.just('{"kind":"ddim"}'),
    extractors=st.dictionaries(st.sampled_from(["pixels", "classifier"]), st.text("abc", min_size=1), max_size=2),
    log_snr_ends=st.none() | st.tuples(numbers, numbers),
)
scores = st.builds(
    Score,
    value=numbers,
    se=st.none() | numbers,
    df=st.none() | st.integers(1, 99),
    n=st.integers(1, 99),
    replicate=st.sampled_from(["images", "seeds", "blocks"]),
    sd=st.none() | numbers,
    protocol=protocols,
)
evaluations = st.builds(
    Evaluated,
    scores=st.dictionaries(st.sampled_from(["vlb_bpd", "nll_bpd", "frechet_pixels", "precision"]), scores),
    samples=st.just(130),
    extractors=st.dictionaries(st.just("classifier"), st.builds(ExtractorUsed, st.text("abc"), st.none() | numbers)),
    frechet_at_nfe=st.dictionaries(
        st.just("fid"), st.lists(st.builds(CurvePoint, st.integers(1, 99), numbers, st.none() | numbers)).map(tuple)
    ),
    classes=st.none() | st.just(ClassCounts((1, 2), (3, 4), (5, 6))),
    notes=st.lists(st.text()).map(tuple),
)


@given(evaluations)
def test_an_evaluation_is_what_its_json_says(evaluated: Evaluated):
    again = evaluated_from_json(json.loads(json.dumps(evaluated.to_json())))
    expected = {name: replace(score, protocol=score.protocol or Protocol()) for name, score in evaluated.scores.items()}
    assert again == replace(evaluated, scores=expected)


@given(evaluations, st.booleans())
def test_a_summary_is_what_its_json_says(evaluated: Evaluated, registered: bool):
    said = Registration("r", "m", "digits", 3, "champion", GateDecision("champion", "better"), True)
    summary = RunSummary(
        name="n", experiment="e", step=7, package_sha256="p", config_sha256="c", method_sha256="m",
        dataset_fingerprint="d", evaluated=evaluated, images_per_second=12.5, seconds={"training": 3.0},
        registration=said if registered else Registration(),
    )  # fmt: skip
    values = json.loads(json.dumps(summary.to_json()))
    assert summary_from_json(values).to_json() == values
    assert set(summary.metrics()) == set(evaluated.metrics()) | {"images_per_second", "seconds.training"}


def test_what_is_drawn_are_the_numbers_and_not_what_only_looks_like_one():
    evaluated = Evaluated(
        {"vlb_bpd": Score(4.5, 0.1), "frechet_classifier": Score(3.0, 0.2, sd=0.3)},
        samples=130,
        extractors={"classifier": ExtractorUsed("ab", 0.9), "pixels": ExtractorUsed("cd")},
    )
    assert evaluated.metrics() == {
        "vlb_bpd": 4.5, "vlb_bpd_se": 0.1,
        "frechet_classifier": 3.0, "frechet_classifier_se": 0.2, "frechet_classifier_sd": 0.3,
        "extractors.classifier.heldout_accuracy": 0.9,
    }  # fmt: skip


@pytest.mark.parametrize(("value", "se", "comparable"), [
    (4.5, 0.1, Score(4.5, 0.1)), (4.5, float("inf"), Score(4.5)), (float("nan"), 0.1, None), (float("inf"), None, None),
])  # fmt: skip
def test_what_is_not_finite_is_not_compared(value, se, comparable):
    assert Evaluated({"vlb_bpd": Score(value, se)}).score("vlb_bpd") == comparable


def test_a_file_of_an_earlier_version_does_not_say_how_it_was_measured():
    score = evaluated_from_json({"vlb_bpd": 4.5, "vlb_bpd_se": 0.1, "name": "x", "step": 3}).scores["vlb_bpd"]
    assert score == Score(4.5, 0.1)
    assert (score.n, score.df, score.replicate, score.protocol) == (None, None, None, None)


def test_a_score_that_is_no_number_is_null_in_json_and_itself_again():
    score = Score(math.nan, se=math.inf, n=4, replicate="images")
    points = {"fid": (CurvePoint(4, math.nan, 0.5),)}
    text = json_text(Evaluated({"vlb_bpd": score}, samples=4, frechet_at_nfe=points).to_json())
    again = evaluated_from_json(json.loads(text, parse_constant=pytest.fail))
    assert math.isnan(again.scores["vlb_bpd"].value)
    assert math.isnan(again.frechet_at_nfe["fid"][0].value)
    assert again.score("vlb_bpd") is None
