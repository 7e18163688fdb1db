"""Learning rates: exact at the corners, and which of them know how long training is."""

import math
from itertools import pairwise

import pytest

from trainer.config.load import apply_sets, validate
from trainer.config.rates import CosineRate, InverseSqrtRate, LinearRate, WarmupStableDecayRate
from trainer.config.run_config import RunConfig
from trainer.config.training import OptimConfig


@pytest.mark.parametrize(
    ("warmup", "rates"), [(4, {1: 0.25, 2: 0.5, 4: 1.0, 5: 1.0, 1000: 1.0}), (0, {1: 1.0, 2: 1.0})]
)
def test_by_default_the_rate_rises_to_a_constant_that_does_not_depend_on_the_length(warmup, rates):
    optim = OptimConfig(lr=0.125, warmup_steps=warmup)
    for steps in (1000, 10**6):
        found = {step: optim.learning_rate(step, steps) for step in rates}
        assert found == {step: 0.125 * share for step, share in rates.items()}


ALL = [
    ({"kind": "cosine"}, {12: 0.5 + math.sqrt(2) / 4, 14: 0.5, 18: 0.0}),
    ({"kind": "cosine", "final": 0.1}, {14: 0.55, 18: 0.1}),
    ({"kind": "linear"}, {11: 0.875, 14: 0.5, 18: 0.0}),
    ({"kind": "linear", "final": 0.5}, {14: 0.75, 18: 0.5}),
    ({"kind": "inverse_sqrt", "reference_steps": 12}, {11: 1.0, 12: 1.0, 48: 0.5, 108: 1 / 3}),
    ({"kind": "wsd", "decay": 0.25}, {11: 1.0, 14: 1.0, 16: 0.5, 18: 0.0}),  # round(0.25 * 18) = 4 steps decay
    ({"kind": "wsd", "decay": 0.9, "final": 0.2}, {14: 0.6, 18: 0.2}),  # never before the warm-up's end
]


@pytest.mark.parametrize(("schedule", "rates"), ALL)
def test_after_ten_steps_of_warm_up_the_schedule_is_the_stated_one(schedule, rates):
    config = validate({"optim": {"lr": 2.0, "warmup_steps": 10, "schedule": schedule}})
    assert config.optim.learning_rate(5, 18) == 1.0
    assert config.optim.learning_rate(10, 18) == 2.0
    found = {step: config.optim.learning_rate(step, 18) for step in rates}
    assert found == pytest.approx({step: 2 * share for step, share in rates.items()}, abs=1e-12)


@pytest.mark.parametrize("schedule", [CosineRate(), LinearRate(), WarmupStableDecayRate(), InverseSqrtRate()])
def test_no_rate_rises_again_and_none_is_negative(schedule):
    rates = [schedule.factor(step, 3, 50) for step in range(4, 60)]
    assert all(a >= b >= 0 for a, b in pairwise(rates))
    assert rates[0] <= 1


def test_a_schedule_is_part_of_the_method_and_the_default_leaves_digests_as_they_were():
    plain = RunConfig()
    assert "schedule" not in plain.identity()["optim"]
    assert validate(apply_sets({}, ["optim.schedule.kind=constant"])).method_sha256 == plain.method_sha256
    assert validate(apply_sets({}, ["optim.schedule.kind=cosine"])).method_sha256 != plain.method_sha256


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["optim.schedule.kind=cosin"], "allowed: 'constant'"),
        (["optim.schedule.kind=cosine", "optim.schedule.final=1.0"], "final"),
        (["optim.schedule.kind=wsd", "optim.schedule.decay=2.0"], "decay"),
    ],
)
def test_what_is_no_schedule_is_refused_by_name(sets, message):
    from trainer.errors import InputError

    with pytest.raises(InputError, match=message):
        validate(apply_sets({}, sets))
