"""How the time of each row is drawn, and what importance sampling must not change: the mean."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion.config import DdpmProcess, ImportanceTime, StratifiedTime, TimeSamplingConfig, UniformTime
from diffusion.process.sde import Chain, make_process
from diffusion.rng import Stream, counter_generator
from diffusion.time_sampling import LossMoments, clamp_below_one, draw_time_fractions


def draw_steps(config: TimeSamplingConfig, generator: np.random.Generator, batch: int, steps: int) -> np.ndarray:
    """Steps 1..T of a chain, int64 [batch]."""
    process = Chain(torch.full((steps,), 0.5))
    times = process.time_from_fraction(torch.from_numpy(draw_time_fractions(config, generator, batch))).numpy()
    assert (times == times.astype(np.int64)).all()
    return times.astype(np.int64)


class FixedGenerator(np.random.Generator):
    """Stands in for numpy's generator: a given permutation and one given offset for all rows."""

    def __init__(self, permutation, offset):
        super().__init__(np.random.PCG64(0))
        self._permutation, self._offset = np.array(permutation), offset

    def permutation(self, x, axis=0):
        assert x == len(self._permutation)
        return self._permutation

    def random(self, *_, **__):
        return self._offset


@given(st.integers(1, 300), st.integers(1, 2000), st.integers(0, 2**32))
@settings(deadline=None)
def test_stratified_covers_every_stratum_exactly_once(batch, steps, seed):
    """Sorted, the t of a batch lie one in each of B equal parts of 1..T."""
    t = draw_steps(StratifiedTime(), counter_generator(seed, Stream.TIMESTEPS), batch, steps)
    assert (t >= 1).all()
    assert (t <= steps).all()
    low, high = np.arange(batch) * steps / batch, (np.arange(batch) + 1) * steps / batch
    ordered = np.sort(t)
    assert (ordered >= np.floor(low) + 1).all()
    assert (ordered <= np.ceil(high)).all()


@given(st.integers(1, 300), st.integers(0, 2**32))
@settings(deadline=None)
def test_stratified_shares_lie_one_in_each_of_b_equal_parts(batch, seed):
    u = draw_time_fractions(StratifiedTime(), counter_generator(seed, Stream.TIMESTEPS), batch)
    assert sorted(np.floor(u * batch).astype(int)) == list(range(batch))


@pytest.mark.parametrize(("batch", "steps"), [(1, 5), (3, 7), (4, 6), (5, 3)])
def test_stratified_gives_every_row_every_t_equally_often(batch, steps):
    """Exact: over all permutations and T equidistant offsets of all rows, each row meets each t equally often."""
    counts = np.zeros((batch, steps + 1), dtype=int)
    for permutation in itertools.permutations(range(batch)):
        for k in range(steps):
            t = draw_steps(StratifiedTime(), FixedGenerator(permutation, (k + 0.5) / steps), batch, steps)
            counts[np.arange(batch), t] += 1
    assert (counts[:, 0] == 0).all()
    assert len(np.unique(counts[:, 1:])) == 1


def test_rows_are_not_tied_to_their_strata():
    """Row 0 must see all of 1..T over steps, not its own part of it."""
    first = [
        draw_time_fractions(StratifiedTime(), counter_generator(0, Stream.TIMESTEPS, step), 8)[0]
        for step in range(4000)
    ]
    counts = np.histogram(first, bins=8, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 24.3  # chi-square, 7 degrees of freedom, 0.1 %


def test_uniform_rows_are_independent_and_uniform():
    t = np.stack(
        [draw_steps(UniformTime(), counter_generator(0, Stream.TIMESTEPS, step), 2, 10) for step in range(5000)]
    )
    counts = np.histogram2d(t[:, 0], t[:, 1], bins=10, range=((0.5, 10.5), (0.5, 10.5)))[0]
    assert counts.sum() == 5000
    assert ((counts - 50) ** 2 / 50).sum() < 149  # chi-square, 99 degrees of freedom, 0.1 %


def test_stratified_estimates_have_far_less_variance():
    """Claim 13 in small: the batch mean of t itself."""

    def spread(config):
        draws = [
            draw_time_fractions(config, counter_generator(2, Stream.TIMESTEPS, step), 128).mean() for step in range(300)
        ]
        return np.std(draws)

    assert spread(StratifiedTime()) < spread(UniformTime()) / 100


def test_importance_starts_from_stratified_draws():
    stratified, importance = (
        draw_time_fractions(config, counter_generator(1, Stream.TIMESTEPS), 64)
        for config in (StratifiedTime(), ImportanceTime())
    )
    assert (stratified == importance).all()


@pytest.mark.parametrize("batch", [2, 128, 1000])
def test_the_largest_offset_still_gives_a_step_of_the_chain(batch):
    t = draw_steps(StratifiedTime(), FixedGenerator(range(batch), 1 - 2.0**-53), batch, 1000)
    assert t.max() <= 1000


@pytest.mark.parametrize("steps", [2, 3, 1000, 1024, 999_983])
def test_the_largest_share_is_the_last_step(steps):
    process = make_process(DdpmProcess(num_train_timesteps=1000)) if steps == 1000 else Chain(torch.full((steps,), 0.5))
    u = clamp_below_one(np.array([1.0, 0.0]))
    assert u[0] < 1
    assert process.time_from_fraction(torch.from_numpy(u)).tolist() == [steps, 1]


def moments(losses, config: ImportanceTime | None = None) -> LossMoments:
    """Moments that have seen one loss in the middle of each part."""
    actual = LossMoments(config or ImportanceTime(bins=len(losses)))
    actual.update((np.arange(len(losses)) + 0.5) / len(losses), np.array(losses, dtype=float))
    return actual


GRID = (np.arange(200_000) + 0.5) / 200_000


@pytest.mark.parametrize("function", [np.sin, np.exp, lambda u: 1 / (0.01 + u)], ids=["sin", "exp", "pole"])
def test_the_importance_estimate_is_unbiased(function):
    """E[f(moved u) weight] over uniform u is the integral of f: by a fine grid of u in place of draws."""
    u, weight = moments([0.1, 5.0, 1.0, 0.0, 2.0, 30.0, 0.3]).draw(GRID)
    expected = function(GRID).mean()
    assert (function(u) * weight).mean() == pytest.approx(expected, rel=2e-4)
    assert weight.mean() == pytest.approx(1, rel=1e-4)


def test_draws_follow_the_probabilities_and_the_weights_undo_them():
    loss = moments([1.0, 4.0, 0.0, 3.0], ImportanceTime(bins=4, uniform=0.2))
    probabilities = 0.05 + 0.8 * np.array([1, 4, 0, 3]) / 8
    assert loss.probabilities() == pytest.approx(probabilities, rel=1e-12)
    u, weight = loss.draw(GRID)
    assert np.bincount((u * 4).astype(int)) / len(u) == pytest.approx(probabilities, abs=1e-5)
    assert np.abs(weight * 4 * probabilities[(u * 4).astype(int)] - 1).max() < 1e-12


def test_importance_has_the_least_variance_where_losses_are_constant_in_each_part():
    """In proportion to the root second moment; with `uniform` near 0 nothing is left of the variance of such a loss."""
    losses = np.array([0.2, 7.0, 1.0, 3.0])
    loss = moments(losses, ImportanceTime(bins=4, uniform=1e-9))
    u, weight = loss.draw(GRID)
    assert np.std(losses[(u * 4).astype(int)] * weight) < 1e-6 * np.std(losses)


def test_probabilities_are_those_of_the_root_second_moment_not_of_the_mean():
    loss = LossMoments(ImportanceTime(bins=2, uniform=1e-9, decay=1 - 1e-12))
    loss.update(np.array([0.1, 0.2, 0.7, 0.8]), np.array([0.0, 2.0, 1.0, 1.0]))
    assert loss.probabilities() == pytest.approx(np.array([2**0.5, 1]) / (1 + 2**0.5), rel=1e-6)


def test_until_every_part_has_been_seen_and_while_nothing_is_lost_draws_stay_uniform():
    loss = LossMoments(ImportanceTime(bins=4))
    for u in (None, 0.1, 0.3, 0.6):
        if u is not None:
            loss.update(np.array([u]), np.array([9.0]))
        assert loss.probabilities().tolist() == [0.25] * 4
        moved, weight = loss.draw(GRID)
        assert np.abs(moved - GRID).max() < 1e-15
        assert (weight == 1).all()
    loss.update(np.array([0.9]), np.array([1.0]))
    assert loss.probabilities()[3] < 0.25
    assert moments([0.0, 0.0, 0.0]).probabilities().tolist() == [1 / 3] * 3


def test_old_losses_are_forgotten_at_the_rate_of_new_ones_in_their_part():
    loss = LossMoments(ImportanceTime(bins=2, decay=0.9))
    loss.update(np.array([0.1, 0.2, 0.6]), np.array([1.0, 2.0, 5.0]))
    assert (loss.sums.tolist(), loss.counts.tolist()) == ([5, 25], [2, 1])
    loss.update(np.array([0.3, 0.4]), np.array([3.0, 1.0]))
    assert loss.sums == pytest.approx([0.81 * 5 + 10, 25], rel=1e-12)
    assert loss.counts == pytest.approx([0.81 * 2 + 2, 1], rel=1e-12)


def test_a_loss_of_the_past_ends_up_not_mattering():
    loss = LossMoments(ImportanceTime(bins=2, decay=0.5, uniform=1e-9))
    loss.update(np.array([0.1, 0.9]), np.array([1e6, 1.0]))
    for _ in range(80):
        loss.update(np.array([0.1, 0.9]), np.array([1.0, 1.0]))
    assert loss.probabilities() == pytest.approx([0.5, 0.5], rel=1e-6)


@given(
    st.lists(st.floats(0, 1e6), min_size=2, max_size=120),
    st.floats(1e-6, 1),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=50),
)
@settings(deadline=None)
def test_draws_are_a_rising_map_of_the_unit_interval_into_itself(losses, uniform, u):
    loss = moments(losses, ImportanceTime(bins=len(losses), uniform=uniform))
    ordered = np.sort(np.array([0.0, *u, math.nextafter(1, 0)]))
    moved, weight = loss.draw(ordered)
    assert ((moved >= 0) & (moved < 1)).all()
    assert (np.diff(moved) >= 0).all()
    assert (weight > 0).all()
    assert weight.max() <= 1 / uniform * (1 + 1e-9)
    assert moved[0] == 0
    assert moved[-1] > 1 - 1e-6


def test_the_last_time_of_all_is_counted_in_the_last_part():
    loss = LossMoments(ImportanceTime(bins=3))
    loss.update(np.array([math.nextafter(1, 0), 1.0]), np.array([1.0, 1.0]))
    assert loss.counts.tolist() == [0, 0, 2]
