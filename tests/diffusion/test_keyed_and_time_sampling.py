"""Keyed noise and the drawing of t."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.config import StratifiedTime, UniformTime
from diffusion.keyed import Stream, keyed_generator, keyed_normal
from diffusion.solvers import ImageNoise
from diffusion.time_sampling import draw_timesteps

keys = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))


@given(st.integers(0, 2**64 - 1), st.lists(keys, min_size=1, max_size=6), st.randoms())
@settings(deadline=None, max_examples=50)
def test_a_row_of_noise_depends_on_its_key_alone(seed, rows, random):
    together = keyed_normal(seed, Stream.TRAINING_NOISE, rows, (2, 3))
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = keyed_normal(seed, Stream.TRAINING_NOISE, [rows[i] for i in order], (2, 3))
    assert torch.equal(shuffled, together[order])
    for row, key in enumerate(rows):
        assert torch.equal(keyed_normal(seed, Stream.TRAINING_NOISE, [key], (2, 3))[0], together[row])


@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.sampled_from(list(Stream)), keys), min_size=2, max_size=2, unique=True
    )
)
@settings(deadline=None, max_examples=100)
def test_distinct_keys_give_distinct_noise(two):
    first, second = (keyed_normal(seed, stream, [key], (16,)) for seed, stream, key in two)
    assert not bool((first == second).any())


@pytest.mark.parametrize("change", ["seed", "stream", "a", "b"])
def test_neighbouring_keys_are_uncorrelated(change):
    base = {"seed": 7, "stream": Stream.SAMPLING_NOISE, "a": 3, "b": 4}
    first, second = (
        keyed_generator(**values).standard_normal(40000)
        for values in (base, {**base, change: type(base[change])(base[change] + 1)})
    )
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(40000)


def test_noise_over_keys_is_standard_normal():
    noise = keyed_normal(
        123, Stream.TRAINING_NOISE, [(step, row) for step in range(50) for row in range(20)], (8, 8)
    ).double()
    count = noise.numel()
    assert float(noise.mean()) == pytest.approx(0, abs=4 / count**0.5)
    assert float(noise.var()) == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    across_rows = torch.corrcoef(noise.flatten(1)[:, :2].T)[0, 1]
    assert abs(float(across_rows)) < 4 / 1000**0.5


def test_the_noise_of_a_key_never_changes():
    """Recorded values: existing runs, packages and seeds depend on them."""
    recorded = [1.4015058279037476, 0.8166124224662781, 1.2597179412841797, 1.2261546850204468]
    assert keyed_normal(0, Stream.SAMPLING_NOISE, [(0, 0)], (4,))[0].tolist() == pytest.approx(recorded, abs=1e-7)


def test_an_images_noise_does_not_depend_on_its_batch():
    whole = ImageNoise(1, [5, 6, 2**63], (1, 2, 2))
    assert torch.equal(ImageNoise(1, [2**63], (1, 2, 2)).draw(3)[0], whole.draw(3)[2])
    assert not torch.equal(whole.draw(3), whole.draw(4))


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
    t = draw_timesteps(StratifiedTime(), keyed_generator(seed, Stream.TIMESTEPS), batch, steps)
    assert (t >= 1).all()
    assert (t <= steps).all()
    low, high = np.arange(batch) * steps / batch, (np.arange(batch) + 1) * steps / batch
    ordered = np.sort(t)
    assert (ordered >= np.floor(low) + 1).all()
    assert (ordered <= np.ceil(high)).all()


@pytest.mark.parametrize(("batch", "steps"), [(1, 5), (3, 7), (4, 6), (5, 3)])
def test_stratified_gives_every_row_every_t_equally_often(batch, steps):
    """Exact: over all permutations and T equidistant offsets of all rows, each row meets each t equally often."""
    counts = np.zeros((batch, steps + 1), dtype=int)
    for permutation in itertools.permutations(range(batch)):
        for k in range(steps):
            t = draw_timesteps(StratifiedTime(), FixedGenerator(permutation, (k + 0.5) / steps), batch, steps)
            counts[np.arange(batch), t] += 1
    assert (counts[:, 0] == 0).all()
    assert len(np.unique(counts[:, 1:])) == 1


def test_rows_are_not_tied_to_their_strata():
    """Row 0 must see all of 1..T over steps, not its own part of it."""
    first = [
        draw_timesteps(StratifiedTime(), keyed_generator(0, Stream.TIMESTEPS, step), 8, 1000)[0] for step in range(4000)
    ]
    counts = np.histogram(first, bins=8, range=(1, 1001))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 24.3  # chi-square, 7 degrees of freedom, 0.1 %


def test_uniform_rows_are_independent_and_uniform():
    t = np.stack(
        [draw_timesteps(UniformTime(), keyed_generator(0, Stream.TIMESTEPS, step), 2, 10) for step in range(5000)]
    )
    counts = np.histogram2d(t[:, 0], t[:, 1], bins=10, range=((0.5, 10.5), (0.5, 10.5)))[0]
    assert counts.sum() == 5000
    assert ((counts - 50) ** 2 / 50).sum() < 149  # chi-square, 99 degrees of freedom, 0.1 %


def test_stratified_estimates_have_far_less_variance():
    """Statement 13 in small: the batch mean of t itself."""

    def spread(config):
        return np.std(
            [
                draw_timesteps(config, keyed_generator(2, Stream.TIMESTEPS, step), 128, 1000).mean()
                for step in range(300)
            ]
        )

    assert spread(StratifiedTime()) < spread(UniformTime()) / 5


@pytest.mark.parametrize("batch", [2, 128, 1000])
def test_the_largest_offset_still_gives_a_step_of_the_chain(batch):
    t = draw_timesteps(StratifiedTime(), FixedGenerator(range(batch), 1 - 2.0**-53), batch, 1000)
    assert t.max() <= 1000
