"""Keyed noise: every draw a function of its key alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion.rng import Stream, counter_generator, counter_normal, counter_uniform
from diffusion.solvers import ImageNoise

keys = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))


@given(st.integers(0, 2**64 - 1), st.lists(keys, min_size=1, max_size=6), st.randoms())
@settings(deadline=None, max_examples=50)
def test_a_row_of_noise_depends_on_its_key_alone(seed, rows, random):
    together = counter_normal(seed, Stream.TRAINING_NOISE, rows, (2, 3))
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = counter_normal(seed, Stream.TRAINING_NOISE, [rows[i] for i in order], (2, 3))
    assert torch.equal(shuffled, together[order])
    for row, key in enumerate(rows):
        assert torch.equal(counter_normal(seed, Stream.TRAINING_NOISE, [key], (2, 3))[0], together[row])


@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.sampled_from(list(Stream)), keys), min_size=2, max_size=2, unique=True
    )
)
@settings(deadline=None, max_examples=100)
def test_distinct_keys_give_distinct_noise(two):
    first, second = (counter_normal(seed, stream, [key], (16,)) for seed, stream, key in two)
    assert not bool((first == second).any())


@pytest.mark.parametrize("change", ["seed", "stream", "a", "b"])
def test_neighbouring_keys_are_uncorrelated(change):
    base = {"seed": 7, "stream": Stream.SAMPLING_NOISE, "a": 3, "b": 4}
    first, second = (
        counter_generator(**values).standard_normal(40000)
        for values in (base, {**base, change: type(base[change])(base[change] + 1)})
    )
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(40000)


def test_noise_over_keys_is_standard_normal():
    noise = counter_normal(
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
    assert counter_normal(0, Stream.SAMPLING_NOISE, [(0, 0)], (4,))[0].tolist() == pytest.approx(recorded, abs=1e-7)


def test_an_images_noise_does_not_depend_on_its_batch():
    whole = ImageNoise(1, [5, 6, 2**63], (1, 2, 2))
    assert torch.equal(ImageNoise(1, [2**63], (1, 2, 2)).draw(3)[0], whole.draw(3)[2])
    assert not torch.equal(whole.draw(3), whole.draw(4))


@pytest.mark.parametrize("shape", [(1, 7, 3), (2,), (1,)])
@pytest.mark.parametrize(("draw", "method"), [(counter_normal, "standard_normal"), (counter_uniform, "random")])
def test_every_row_is_that_of_a_generator_of_its_own(shape, draw, method):
    """One generator is moved from key to key: nothing of the row before may be left in it."""
    keys = [(7, 2**64 - 1), (7, 3), (8, 3), (2**64 - 1, 0)]
    drawn = draw(2**63 + 5, Stream.SAMPLING_NOISE, keys, shape)
    for row, key in zip(drawn, keys, strict=True):
        own = getattr(counter_generator(2**63 + 5, Stream.SAMPLING_NOISE, *key), method)(shape, dtype=np.float32)
        assert np.array_equal(row.numpy(), own)
