"""Frechet distance: closed forms, SciPy's matrix root, and moments that add."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings, strategies as st

from diffusion.frechet import Moments, frechet_distance


def moments_of(mean: np.ndarray, covariance: np.ndarray, count: int = 1000) -> Moments:
    """Moments with exactly this mean and unbiased covariance."""
    outer = covariance * (count - 1) + count * np.outer(mean, mean)
    return Moments(count, torch.from_numpy(count * mean), torch.from_numpy(outer))


def random_covariance(rng: np.random.Generator, d: int) -> np.ndarray:
    a = rng.standard_normal((d, 2 * d))
    return a @ a.T / d


@given(st.integers(1, 12), st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_commuting_covariances_have_a_closed_form(d, seed):
    """Common eigenvectors: ||difference of means||^2 + sum (sqrt(l_a) - sqrt(l_b))^2."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
    spectra = rng.uniform(0.01, 10, (2, d))
    means = rng.standard_normal((2, d))
    a, b = (moments_of(mean, basis * spectrum @ basis.T) for mean, spectrum in zip(means, spectra, strict=True))
    expected = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(spectra[0]) - np.sqrt(spectra[1])) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("d", [2, 8, 64])
def test_equals_the_formula_with_scipys_matrix_root(d):
    rng = np.random.default_rng(d)
    a, b = (rng.standard_normal((300, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d) for _ in range(2))
    s_a, s_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.asarray(scipy.linalg.sqrtm(s_a @ s_b))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s_a + s_b - 2 * np.real(root))
    assert frechet_distance(Moments.of(torch.from_numpy(a)), Moments.of(torch.from_numpy(b))) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_is_a_distance_of_distributions(seed):
    rng = np.random.default_rng(seed)
    a, b = (moments_of(rng.standard_normal(6), random_covariance(rng, 6)) for _ in range(2))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(a, b) > 0.1


def test_survives_features_that_are_always_zero():
    """Dead ReLUs give covariances with zero rows, where a matrix root by SciPy may turn complex."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(np.maximum(rng.standard_normal((200, 6)), 0))
    features[:, 2] = 0
    other = features.clone()
    other[:, 4] += 3
    assert frechet_distance(Moments.of(features), Moments.of(other)) == pytest.approx(9, rel=1e-9)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_moments_of_shards_add_up(sizes, seed):
    features = torch.from_numpy(np.random.default_rng(seed).standard_normal((sum(sizes), 5)) + 2)
    whole = Moments.of(features)
    first, *others = [Moments.of(part) for part in features.split(sizes)]
    added, left = first, whole
    for part in others:
        added, left = added + part, left - part
    for actual, expected in ((added, whole), (left, first)):
        assert actual.count == expected.count
        torch.testing.assert_close(actual.total, expected.total, rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(actual.outer, expected.outer, rtol=1e-12, atol=1e-11)


def test_the_distance_from_shards_is_that_of_one_pass_to_1e_12():
    rng = np.random.default_rng(3)
    a, b = (torch.from_numpy(rng.standard_normal((400, 8)) * (1 + i) + i) for i in range(2))
    parts = [Moments.of(part) for part in a.split([1, 150, 249])]
    sharded = frechet_distance(parts[2] + parts[0] + parts[1], Moments.of(b))
    assert sharded == pytest.approx(frechet_distance(Moments.of(a), Moments.of(b)), rel=1e-12)


def test_mean_and_covariance_are_numpys():
    features = np.random.default_rng(4).standard_normal((50, 3)) + 100
    mean, covariance = Moments.of(torch.from_numpy(features)).mean_and_covariance()
    assert mean.numpy() == pytest.approx(features.mean(0), rel=1e-14)
    assert covariance.numpy() == pytest.approx(np.cov(features, rowvar=False), rel=1e-8, abs=1e-9)


def test_float32_features_are_summed_in_float64():
    features = torch.full((3000, 1), 0.1) + torch.arange(3000)[:, None] * 1e-4
    assert float(Moments.of(features).total) == pytest.approx(float(features.double().sum()), rel=1e-15)


@pytest.mark.parametrize("count", [1, 5, 6])
def test_too_few_samples_for_a_covariance_are_refused(count):
    features = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=f"{count} samples for 6 feature dimensions; at least 7 are needed"):
        frechet_distance(Moments.of(features), Moments.of(torch.randn(20, 6)))


@pytest.mark.parametrize("n", [50])
def test_bias_falls_as_one_over_n(n):
    """Claim 15: bias times N is constant; two samples of one distribution, many times over."""
    rng = np.random.default_rng(5)
    reference = moments_of(np.zeros(4), np.eye(4))

    def bias(count: int) -> float:
        draws = (Moments.of(torch.from_numpy(rng.standard_normal((count, 4)))) for _ in range(400))
        return float(np.mean([frechet_distance(m, reference) for m in draws]))

    assert bias(n) * n == pytest.approx(bias(4 * n) * 4 * n, rel=0.1)


def test_moments_are_added_to_nothing():
    features = torch.randn(20, 3, dtype=torch.float64)
    none = Moments.none(3)
    assert none.count == 0
    summed, whole = none + Moments.of(features), Moments.of(features)
    assert torch.equal(summed.total, whole.total)
    assert torch.equal(summed.outer, whole.outer)
