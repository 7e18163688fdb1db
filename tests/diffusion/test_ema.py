"""Power-function EMA: the profile that the recursion really produces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.ema import decay, gamma_from_sigma_rel


@given(st.floats(1e-3, 0.28))
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
