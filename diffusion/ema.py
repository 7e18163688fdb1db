"""Power-function EMA (Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models").

theta_ema(t) = integral over [0, t] of p(tau) theta(tau), p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1): the profile's
width is a fixed fraction sigma_rel of the training so far, so no decay has to be tuned to the length of a run. Sharding
is the trainer's concern.

Post-hoc EMA (section 3.2, algorithm 3): snapshots of two tracks span a space of profiles, onto which the profile of any
other sigma_rel is projected, so the width is chosen after training. theta(tau) is taken to be constant on (k - 1, k],
at its value after step k. On such a path the recursion with `decay` is exactly the integral, so what holds for the
profiles holds for stored averages, and the error of an average is at most ||p - sum_i w_i p_i|| ||theta - any
constant||.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """The exponent gamma whose profile has relative standard deviation sigma_rel.

    It is the largest real root of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Args:
        sigma_rel: standard deviation of the profile as a fraction of the training so far.

    Raises:
        ValueError: sigma_rel outside (0, 0.28], where no profile exists.
    """
    if not 0 < sigma_rel <= 0.28:
        raise ValueError(f"sigma_rel = {sigma_rel}; allowed: above 0, at most 0.28")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def decay(step: int, gamma: float) -> float:
    """beta = (1 - 1 / step)^(gamma + 1) of the update theta_ema <- beta theta_ema + (1 - beta) theta.

    Args:
        step: number of the step that gave theta, from 1.
        gamma: exponent of the profile.
    """
    return (1 - 1 / step) ** (gamma + 1)


def step_weights(step: int, gamma: float) -> NDArray[np.float64]:
    """The weight in the average of theta after each step k = 1..`step`: the integral of p over (k - 1, k].

    It is (k / step)^(gamma + 1) - ((k - 1) / step)^(gamma + 1); the weights sum to 1.

    Args:
        step: number of steps so far.
        gamma: exponent of the profile.

    Returns:
        float64 [step].
    """
    return np.diff((np.arange(step + 1) / step) ** (gamma + 1))


def track(trajectory: NDArray[np.float64], gamma: float, every: int) -> NDArray[np.float64]:
    """The snapshots that a run would store: the recursion over theta after steps 1..n, kept every `every` steps.

    Args:
        trajectory: [n, ...], row k - 1 is theta after step k.
        gamma: exponent of the track's profile.
        every: steps from one snapshot to the next.

    Returns:
        float64 [n // every, ...], the averages after steps every, 2 every, ...
    """
    average = np.zeros(trajectory.shape[1:])
    kept: list[NDArray[np.float64]] = []
    for step, theta in enumerate(trajectory, start=1):
        average = average + (1 - decay(step, gamma)) * (theta - average)
        if step % every == 0:
            kept.append(average)
    return np.reshape(kept, (len(kept), *trajectory.shape[1:]))


def profile_inner_product(
    t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike
) -> NDArray[np.float64]:
    """<p_a, p_b>: the integral of p_a p_b over [0, min(t_a, t_b)] (Karras et al. 2024, equation 151).

    With t_a <= t_b it is (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (t_a / t_b)^gamma_b / t_b. Only ratios
    of times, at most 1, are raised to powers, so that nothing overflows in long runs.

    Args:
        t_a: end of the first profile, in steps, above 0; all arguments broadcast.
        gamma_a: its exponent, above -1/2.
        t_b: end of the second profile, in steps, above 0.
        gamma_b: its exponent, above -1/2.

    Returns:
        float64, per step.

    Raises:
        ValueError: a time that is not positive, or gamma <= -1/2, where p^2 has no integral.
    """
    first, second = _above(0, "times", t_a), _above(0, "times", t_b)
    gamma_1, gamma_2 = _above(-0.5, "gammas", gamma_a), _above(-0.5, "gammas", gamma_b)
    longer = np.maximum(first, second)
    overlap = (np.minimum(first, second) / longer) ** np.where(first < second, gamma_2, gamma_1)
    return (gamma_1 + 1) * (gamma_2 + 1) / (gamma_1 + gamma_2 + 1) * overlap / longer


def _above(low: float, name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    wrong = array[~((array > low) & (array < np.inf))]
    if wrong.size:
        raise ValueError(f"{name} with {wrong[0]:g}; allowed: above {low:g} and finite")
    return array


def posthoc_weights(
    snapshot_steps: ArrayLike, snapshot_gammas: ArrayLike, target_step: float, target_gamma: float
) -> NDArray[np.float64]:
    """w of theta_target = sum_i w_i snapshot_i: the least-squares minimum of ||p - sum_i w_i p_i|| (algorithm 3).

    A w = b with A_ij = <p_i, p_j> and b_i = <p_i, p>, then w / sum(w), as in the authors' code, so that a parameter
    that never changed keeps its value. Some weights are negative; sum |w| is at most about 2 in the layout below.

    With both tracks, sigma_rel 0.05 and 0.10, stored at 16 evenly spaced steps (n/16, 2n/16, .., n) and the target at
    the last, `reconstruction_error` is 0.33 % at sigma_rel 0.06, 0.35 % at 0.075 and 0.12, 0.90 % at 0.15 and 2.3 % at
    0.20. It falls as the spacing squared.

    Args:
        snapshot_steps: [m] steps of the stored averages, in any order; the last must be the target's.
        snapshot_gammas: [m] exponents of their tracks.
        target_step: step at which the other average is wanted.
        target_gamma: exponent of its profile.

    Returns:
        float64 [m], of sum 1.

    Raises:
        ValueError: no snapshot, one after the target, none at the target, or lengths that differ.
    """
    inner, with_target = _system(snapshot_steps, snapshot_gammas, target_step, target_gamma)
    unit = 1 / np.sqrt(np.diag(inner))  # profiles of one norm: early snapshots' are far larger
    solution = np.linalg.lstsq(unit[:, None] * inner * unit, unit * with_target, rcond=None)[0]
    weights = unit * solution
    return weights / weights.sum()


def reconstruction_error(
    weights: ArrayLike, snapshot_steps: ArrayLike, snapshot_gammas: ArrayLike, target_step: float, target_gamma: float
) -> float:
    """The relative error ||p - sum_i w_i p_i|| / ||p|| of a profile, in L2 on [0, target_step].

    Its square is 1 - (2 w.b - w.A w) / <p, p>, a difference, so an error below about 1e-7 is rounding.

    Args:
        weights: [m] weights of the snapshots, such as those of `posthoc_weights`.
        snapshot_steps: [m] steps of the stored averages.
        snapshot_gammas: [m] exponents of their tracks.
        target_step: step of the target.
        target_gamma: exponent of its profile.

    Raises:
        ValueError: as `posthoc_weights`; or not one weight for each snapshot.
    """
    inner, with_target = _system(snapshot_steps, snapshot_gammas, target_step, target_gamma)
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != with_target.shape:
        raise ValueError(f"weights of shape {w.shape} for {len(with_target)} snapshots; allowed: one weight each")
    norm = float(profile_inner_product(target_step, target_gamma, target_step, target_gamma))
    explained = float(2 * w @ with_target - w @ inner @ w)
    return max(0.0, 1 - explained / norm) ** 0.5


def _system(
    snapshot_steps: ArrayLike, snapshot_gammas: ArrayLike, target_step: float, target_gamma: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A [m, m] and b [m] of the normal equations."""
    steps, gammas = (np.asarray(values, dtype=np.float64) for values in (snapshot_steps, snapshot_gammas))
    if steps.ndim != 1 or steps.shape != gammas.shape or not len(steps):
        raise ValueError(f"steps of shape {steps.shape}, gammas of {gammas.shape}; allowed: [m] both, m at least 1")
    if steps.max() > target_step:
        raise ValueError(f"a snapshot of step {steps.max():g} is after the target's, {target_step:g}; leave it out")
    if steps.max() < target_step:
        raise ValueError(
            f"the last snapshot, of step {steps.max():g}, does not reach step {target_step:g}; allowed targets: a "
            "snapshot's step"
        )
    inner = profile_inner_product(steps[:, None], gammas[:, None], steps, gammas)
    return inner, profile_inner_product(steps, gammas, target_step, target_gamma)
