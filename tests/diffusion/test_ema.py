"""Power-function EMA: the profile that the recursion really produces, and other profiles from stored ones."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.integrate import quad

from diffusion.ema import (
    decay,
    gamma_from_sigma_rel,
    posthoc_weights,
    profile_inner_product,
    reconstruction_error,
    step_weights,
    track,
)


@given(st.floats(1e-3, 0.28))
@settings(deadline=None)
def test_gamma_and_sigma_rel_are_one_parameter(sigma_rel):
    gamma = gamma_from_sigma_rel(sigma_rel)
    assert gamma > -0.5
    assert ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5 == pytest.approx(sigma_rel, rel=1e-6)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_published_pairs(sigma_rel, gamma):
    """Karras et al. 2024, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert gamma_from_sigma_rel(sigma_rel) == pytest.approx(gamma, abs=0.005)


def profile(steps: int, gamma: float) -> np.ndarray:
    """The weight of each step's parameters in the average after `steps` updates, by running the recursion."""
    weights = np.zeros(steps)
    for step in range(1, steps + 1):
        beta = decay(step, gamma)
        weights *= beta
        weights[step - 1] += 1 - beta
    return weights


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.1, 0.15, 0.25])
def test_the_recursions_profile_has_the_stated_relative_width(sigma_rel):
    steps = 4000
    weights, time = profile(steps, gamma_from_sigma_rel(sigma_rel)), np.arange(1, steps + 1) / steps
    mean = (weights * time).sum()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert np.sqrt((weights * (time - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=5e-3)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.2])
def test_the_profile_is_the_power_function(sigma_rel):
    gamma, steps = gamma_from_sigma_rel(sigma_rel), 2000
    time = (np.arange(steps) + 0.5) / steps
    expected = time**gamma
    expected /= expected.sum()
    assert np.abs(profile(steps, gamma) - expected).sum() < 0.01


def test_the_first_step_replaces_whatever_was_there():
    assert decay(1, gamma_from_sigma_rel(0.1)) == 0


@pytest.mark.parametrize("bad", [0.0, -0.1, 0.2801, 1.0])
def test_a_width_no_profile_has_is_refused(bad):
    with pytest.raises(ValueError, match=rf"sigma_rel = {bad}; allowed: above 0, at most 0.28"):
        gamma_from_sigma_rel(bad)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.25])
def test_a_steps_weight_is_the_profile_over_that_step_exactly(sigma_rel):
    """So whatever holds for profiles holds for stored averages."""
    gamma = gamma_from_sigma_rel(sigma_rel)
    assert step_weights(500, gamma) == pytest.approx(profile(500, gamma), rel=1e-9, abs=1e-15)


def test_a_track_keeps_the_average_after_every_so_many_steps():
    trajectory = np.random.default_rng(0).standard_normal((25, 3))
    kept = track(trajectory, 6.94, 10)
    assert kept == pytest.approx(np.stack([profile(step, 6.94) @ trajectory[:step] for step in (10, 20)]), abs=1e-12)
    assert track(trajectory, 6.94, 26).shape == (0, 3)


GAMMAS = st.floats(-0.4, 60)
TIMES = st.floats(1, 50)


@given(TIMES, GAMMAS, TIMES, GAMMAS)
@settings(deadline=None)
def test_the_inner_product_is_the_integral(t_a, gamma_a, t_b, gamma_b):
    end = min(t_a, t_b)
    constant = (gamma_a + 1) / t_a * (end / t_a) ** gamma_a * (gamma_b + 1) / t_b * (end / t_b) ** gamma_b
    # u = (tau / end)^(1/10) takes the pole at 0 away: tau^-0.8 is integrable, and hard for a quadrature
    integral, _ = quad(lambda u: 10 * u ** (10 * (gamma_a + gamma_b) + 9), 0, 1, epsabs=0, epsrel=1e-10, limit=500)
    assert profile_inner_product(t_a, gamma_a, t_b, gamma_b) == pytest.approx(constant * end * integral, rel=1e-8)


@given(TIMES, GAMMAS, TIMES, GAMMAS, st.floats(1e-3, 1e12))
@settings(deadline=None)
def test_the_inner_product_is_symmetric_and_one_over_time(t_a, gamma_a, t_b, gamma_b, unit):
    one = profile_inner_product(t_a, gamma_a, t_b, gamma_b)
    assert profile_inner_product(t_b, gamma_b, t_a, gamma_a) == pytest.approx(one, rel=1e-12)
    assert profile_inner_product(t_a * unit, gamma_a, t_b * unit, gamma_b) * unit == pytest.approx(one, rel=1e-9)


def test_the_inner_product_stays_finite_in_the_longest_and_narrowest_case():
    gamma = gamma_from_sigma_rel(1e-3)
    assert profile_inner_product(1e12, gamma, 1e12, gamma) == pytest.approx((gamma + 1) ** 2 / (2 * gamma + 1) / 1e12)
    assert profile_inner_product(1, gamma, 1e12, gamma) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 2, 1), "times with 0; allowed: above 0 and finite"),
        ((1, 1, math.nan, 1), "times with nan; allowed: above 0 and finite"),
        ((1, -0.5, 2, 1), "gammas with -0.5; allowed: above -0.5 and finite"),
        ((1, 1, 2, math.inf), "gammas with inf; allowed: above -0.5 and finite"),
    ],
)
def test_profiles_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        profile_inner_product(*arguments)


TRACKS = [gamma_from_sigma_rel(0.05), gamma_from_sigma_rel(0.10)]


def layout(count: int, every: int = 250) -> tuple[np.ndarray, np.ndarray]:
    """Both tracks' snapshots, `count` each, evenly spaced."""
    return np.tile(np.arange(1, count + 1) * every, 2), np.repeat(TRACKS, count)


def error(count: int, sigma_rel: float) -> float:
    snapshots, gamma = layout(count), gamma_from_sigma_rel(sigma_rel)
    return reconstruction_error(posthoc_weights(*snapshots, count * 250, gamma), *snapshots, count * 250, gamma)


@pytest.mark.parametrize(
    ("sigma_rel", "percent"), [(0.06, 0.3335), (0.075, 0.3484), (0.12, 0.3468), (0.15, 0.8991), (0.2, 2.3332)]
)
def test_the_error_of_sixteen_snapshots_of_two_tracks(sigma_rel, percent):
    assert 100 * error(16, sigma_rel) == pytest.approx(percent, abs=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.06, 0.075, 0.12, 0.15])
def test_the_error_falls_as_the_spacing_squared(sigma_rel):
    assert np.log2(error(32, sigma_rel) / error(64, sigma_rel)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("track_index", [0, 1])
def test_a_track_is_its_own_last_snapshot(track_index):
    snapshots = layout(16)
    weights = posthoc_weights(*snapshots, 4000, TRACKS[track_index])
    one_hot = np.zeros(32)
    one_hot[16 * track_index + 15] = 1
    assert weights == pytest.approx(one_hot, abs=1e-9)
    assert reconstruction_error(weights, *snapshots, 4000, TRACKS[track_index]) < 1e-7


def test_the_error_with_no_weight_is_all_of_the_profile():
    assert reconstruction_error(np.zeros(32), *layout(16), 4000, 5.0) == 1


@given(st.integers(0, 31), st.integers(0, 31), st.sampled_from([-1e-3, 1e-3]))
@settings(deadline=None)
def test_no_weights_of_sum_one_are_much_better(add, remove, by):
    snapshots, gamma = layout(16), gamma_from_sigma_rel(0.15)
    weights = posthoc_weights(*snapshots, 4000, gamma)
    best = reconstruction_error(weights, *snapshots, 4000, gamma)
    weights[add] += by
    weights[remove] -= by
    assert reconstruction_error(weights, *snapshots, 4000, gamma) > best * (1 - 1e-3)


@given(st.permutations(range(32)), st.integers(1, 10**9))
@settings(deadline=None)
def test_neither_the_order_of_snapshots_nor_the_unit_of_time_matters(order, unit):
    (steps, gammas), gamma = layout(16), gamma_from_sigma_rel(0.075)
    weights = posthoc_weights(steps, gammas, 4000, gamma)
    moved = posthoc_weights(steps[order] * float(unit), gammas[order], 4000.0 * unit, gamma)
    assert moved == pytest.approx(weights[order], abs=1e-8)


def test_a_snapshot_given_twice_changes_nothing():
    (steps, gammas), gamma = layout(16), gamma_from_sigma_rel(0.075)
    twice = np.append(steps, 4000), np.append(gammas, TRACKS[0])
    weights = posthoc_weights(*twice, 4000, gamma)
    assert weights[15] == pytest.approx(weights[-1])
    assert reconstruction_error(weights, *twice, 4000, gamma) == pytest.approx(error(16, 0.075), rel=1e-4)


def test_many_snapshots_are_no_harder():
    """Their Gram matrix is nearly singular; its solution must not be."""
    weights = posthoc_weights(*layout(400), 100_000, gamma_from_sigma_rel(0.15))
    assert np.abs(weights).sum() < 2
    assert error(400, 0.15) == pytest.approx(error(40, 0.15) / 100, rel=0.05)


def trajectory() -> np.ndarray:
    """4000 steps of parameters that drift, swing, wander and jitter."""
    time, noise = np.arange(1, 4001) / 4000, np.random.default_rng(1)
    smooth = np.stack([np.sqrt(time), np.sin(9 * time), np.exp(-5 * time), np.full(4000, 3.0)], axis=1)
    wandering = noise.standard_normal((4000, 2)).cumsum(axis=0) / 4000**0.5
    jitter = np.array([0.3, 0.3, 0.0, 0.0, 0.3, 0.3])
    return np.concatenate([smooth, wandering], axis=1) + jitter * noise.standard_normal((4000, 6))


@pytest.mark.parametrize("sigma_rel", [0.05, 0.06, 0.075, 0.10, 0.12, 0.15, 0.20])
def test_real_tracks_stand_for_an_average_that_was_not_tracked(sigma_rel):
    theta, gamma = trajectory(), gamma_from_sigma_rel(sigma_rel)
    stored = np.concatenate([track(theta, tracked, 250) for tracked in TRACKS])
    snapshots = layout(16)
    weights = posthoc_weights(*snapshots, 4000, gamma)
    difference = np.abs(weights @ stored - track(theta, gamma, 4000)[0])
    # |<p - sum w_i p_i, theta - c>| <= ||p - sum w_i p_i|| ||theta - c||, for any c as the weights' sum is one
    spread = np.sqrt(((theta - theta.mean(axis=0)) ** 2).sum(axis=0))
    norm = np.sqrt(profile_inner_product(4000, gamma, 4000, gamma))
    bound = reconstruction_error(weights, *snapshots, 4000, gamma) * norm * spread
    assert (difference <= bound + 1e-10).all()
    assert (difference < 0.01 * theta.std(axis=0) + 1e-10).all()
    if sigma_rel in (0.05, 0.10):
        assert difference.max() < 1e-9


@pytest.mark.parametrize(
    ("steps", "gammas", "target", "message"),
    [
        ([], [], 10, r"steps of shape \(0,\), gammas of \(0,\); allowed: \[m\] both, m at least 1"),
        ([10, 20], [5.0], 20, r"steps of shape \(2,\), gammas of \(1,\)"),
        (20, 5.0, 20, r"steps of shape \(\), gammas of \(\)"),
        ([10, 30], [5.0, 5.0], 20, "a snapshot of step 30 is after the target's, 20; leave it out"),
        ([10, 20], [5.0, 5.0], 21, "step 20, does not reach step 21; allowed targets: a snapshot's step"),
        ([0, 20], [5.0, 5.0], 20, "times with 0; allowed: above 0 and finite"),
        ([10, 20], [5.0, -0.7], 20, "gammas with -0.7; allowed: above -0.5 and finite"),
        ([10, 20], [5.0, 5.0], math.nan, "times with nan; allowed: above 0 and finite"),
    ],
)
def test_snapshots_that_cannot_stand_for_the_target_are_refused(steps, gammas, target, message):
    with pytest.raises(ValueError, match=message):
        posthoc_weights(steps, gammas, target, 5.0)
    with pytest.raises(ValueError, match=message):
        reconstruction_error(np.ones(np.size(steps)), steps, gammas, target, 5.0)


def test_one_weight_for_each_snapshot():
    with pytest.raises(ValueError, match=r"weights of shape \(3,\) for 2 snapshots; allowed: one weight each"):
        reconstruction_error([1, 1, 1], [10, 20], [5.0, 5.0], 20, 5.0)
