"""Screening: exact where the error against log-SNR is known, and honest about what it cannot say."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from diffusion.config import (
    CosineSchedule,
    DdpmProcess,
    LinearSchedule,
    ProcessConfig,
    QuadraticSchedule,
    SigmoidSchedule,
    SubVpProcess,
    VeProcess,
    VpProcess,
)
from diffusion.gaussian import GaussianData
from diffusion.likelihood.continuous import log_snr_ends
from diffusion.likelihood.discrete import ReverseKernel, bits_per_dim
from diffusion.likelihood.screening import DenoisingCurve, Estimate, screen
from diffusion.process.sde import Process, make_process

DATA = GaussianData(0.0, 0.25)
DIMENSIONS = 3
ENDS = {"log_snr_max": 9.0, "log_snr_min": -9.0}
SCHEDULES = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "quadratic": QuadraticSchedule(),
    "sigmoid": SigmoidSchedule(),
}


def gaussian_error(log_snr: Tensor) -> Tensor:
    """E (eps - E[eps | x_t])^2 = SNR Var(x_0 | x_t) of one dimension."""
    snr = log_snr.exp()
    return snr * DATA.variance / (1 + snr * DATA.variance)


def gaussian_curve(points: int = 6000, low: float = -25.0, high: float = 18.0) -> DenoisingCurve:
    log_snr = torch.linspace(high, low, points, dtype=torch.float64)
    return DenoisingCurve(
        log_snr=log_snr,
        mse=DIMENSIONS * gaussian_error(log_snr).repeat(2, 1),
        x0_mse=DIMENSIONS * (gaussian_error(log_snr) / log_snr.exp()).repeat(2, 1),
        second_moment=DIMENSIONS * DATA.variance,
        reconstruction=torch.zeros(points, dtype=torch.float64),
        dimensions=DIMENSIONS,
        package_sha256="0" * 64,
        dataset_fingerprint="1" * 64,
        images=2,
    )


CURVE = gaussian_curve()


def ddpm(name: str, steps: int, variance: str = "beta") -> Process:
    return make_process(
        DdpmProcess.model_validate(
            {"num_train_timesteps": steps, "schedule": SCHEDULES[name], "reverse_variance": variance}
        )
    )


def exact_chain(process: Process) -> float:
    """The chain's sum with the exact denoiser, bits a dimension: quadratic, so the mean over corners is the mean."""
    kernel = ReverseKernel(DATA.denoiser(process), clip_x0=False)
    index = torch.arange(2, process.num_steps + 1)
    total = 0.0
    for x_0 in (-1.0, 1.0):
        for eps in (-1.0, 1.0):
            rows = torch.ones((len(index), 1), dtype=torch.float64)
            total += float(kernel.diffusion_kl(x_0 * math.sqrt(DATA.variance) * rows, index, eps * rows).sum()) / 4
    return float(bits_per_dim(torch.tensor(total), 1))


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_chain_is_screened_to_its_exact_bound(name, variance):
    process = ddpm(name, 200, variance)
    actual = screen(CURVE, process)
    assert actual.diffusion.value == pytest.approx(exact_chain(process), rel=1e-5)
    assert actual.diffusion.standard_error == 0
    assert actual.log_snr == pytest.approx(tuple(reversed(log_snr_ends(process))))


@pytest.mark.parametrize("config", [VpProcess(), SubVpProcess(), VeProcess(), DdpmProcess()], ids=lambda c: c.kind)
def test_the_continuous_bound_is_the_entropy_it_must_be(config: ProcessConfig):
    """Prior + 1/2 integral + h(x_0 | x at t_min) = h(x_0) + KL(q(x_T) || N(0, p^2)), in closed form."""
    process = make_process(config)
    actual = screen(CURVE, process)
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    left = float(DATA.x0_variance(process, ends)[0])
    spread = float(DATA.variance_at(process, ends)[1]) / process.prior_std**2
    expected = DATA.entropy + 0.5 * (spread - 1 - math.log(spread)) - 0.5 * math.log(2 * math.pi * math.e * left)
    assert actual.continuous_vlb.value == pytest.approx(expected / math.log(2), rel=1e-5)


def test_between_fixed_ends_the_gap_falls_as_one_over_the_steps():
    def gap(steps: int) -> float:
        values = {"num_train_timesteps": steps, "reverse_variance": "beta_tilde", **ENDS}
        return screen(CURVE, make_process(VpProcess.model_validate({"schedule": CosineSchedule(), **values}))).gap.value

    gaps = [gap(steps) for steps in (800, 1600, 3200)]
    assert all(value > 0 for value in gaps)
    assert [finer / coarser for coarser, finer in pairwise(gaps)] == pytest.approx([0.5, 0.5], abs=0.03)


def test_equal_ends_have_equal_continuous_bounds_and_other_gaps():
    schedules = (CosineSchedule(), SigmoidSchedule())
    actual = [screen(CURVE, make_process(VpProcess.model_validate({"schedule": each, **ENDS}))) for each in schedules]
    assert actual[0].continuous_vlb.value == pytest.approx(actual[1].continuous_vlb.value, rel=1e-9)
    assert actual[1].gap.value > 1.5 * actual[0].gap.value


def test_the_chain_is_screened_by_its_clipped_estimates():
    """Where clipping makes the error of x_0 smaller, the chain's bound is smaller, the continuous one the same."""
    low = CURVE.log_snr < -2
    clipped = replace(CURVE, x0_mse=torch.where(low, 0.5 * CURVE.x0_mse, CURVE.x0_mse))
    actual, plain = screen(clipped, ddpm("cosine", 500)), screen(CURVE, ddpm("cosine", 500))
    assert actual.diffusion.value < plain.diffusion.value
    assert actual.continuous_vlb == plain.continuous_vlb


def test_outside_the_curve_nothing_is_said():
    narrow = gaussian_curve(100, low=-8.0, high=12.0)
    with pytest.raises(ValueError, match=r"log-SNR from -19.* allowed: within -8.00 to 12.00, which was measured"):
        screen(narrow, ddpm("cosine", 1000))
    with pytest.raises(ValueError, match=r"allowed: within -25.00 to 3.00"):
        screen(gaussian_curve(100, high=3.0), ddpm("linear", 1000))


def test_a_learned_reverse_variance_is_refused():
    with pytest.raises(ValueError, match="reverse_variance = learned"):
        screen(CURVE, ddpm("linear", 50, "learned"))


def test_errors_are_the_spread_of_the_groups():
    groups = torch.tensor([0.9, 1.0, 1.2], dtype=torch.float64)
    scaled = {name: groups[:, None] * getattr(CURVE, name)[:1] for name in ("mse", "x0_mse")}
    curve = replace(CURVE, second_moment=0.0, **scaled)
    process = ddpm("linear", 100)
    actual, exact = screen(curve, process), screen(CURVE, process)
    assert actual.diffusion.standard_error > 0
    integral = float(bits_per_dim(CURVE.integral(*actual.log_snr)[:1] / 2, DIMENSIONS))
    expected = integral * float(groups.std()) / 3**0.5
    assert actual.continuous_vlb.standard_error == pytest.approx(expected, rel=1e-9)
    assert exact.continuous_vlb.standard_error == 0


def test_bits_are_means_over_groups():
    actual = Estimate.of(torch.tensor([math.log(2), 3 * math.log(2)], dtype=torch.float64), 2)
    assert actual == Estimate(pytest.approx(1.0), pytest.approx(0.5))  # type: ignore[arg-type]


@given(st.floats(-24, 17), st.integers(0, 1))
def test_between_points_the_curve_is_the_curve(log_snr, group):
    at = torch.tensor([log_snr], dtype=torch.float64)
    expected = DIMENSIONS * float(gaussian_error(at))
    assert float(CURVE.at(at, CURVE.mse)[group]) == pytest.approx(expected, rel=1e-5)


def test_a_coarse_curve_is_close():
    """The 96 points of an evaluation over its range."""
    process = ddpm("linear", 1000)
    coarse, fine = (screen(gaussian_curve(points, -20.0, 10.2), process) for points in (96, 6000))
    assert coarse.diffusion.value == pytest.approx(fine.diffusion.value, abs=0.005)
    assert coarse.gap.value == pytest.approx(fine.gap.value, abs=0.00005)


def test_a_curve_is_read_back():
    again = DenoisingCurve.from_json(CURVE.to_json())
    assert torch.equal(again.mse, CURVE.mse)
    assert again.to_json() == CURVE.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_snr": CURVE.log_snr.flip(0)}, "descending"),
        ({"log_snr": CURVE.log_snr[:1]}, "at least two"),
        ({"mse": CURVE.mse[:1], "x0_mse": CURVE.mse[:1]}, "errors of at least 2 groups"),
        ({"x0_mse": CURVE.mse[:, 1:]}, "a value at each"),
        ({"mse": CURVE.mse[:, 1:]}, "a value at each"),
        ({"reconstruction": CURVE.reconstruction[1:]}, "a value at each"),
        ({"mse": -CURVE.mse}, "errors above 0"),
        ({"x0_mse": 0 * CURVE.mse}, "errors above 0"),
        ({"reconstruction": CURVE.reconstruction + math.nan}, "finite numbers"),
    ],
)
def test_what_is_no_curve_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CURVE, **change)


@pytest.mark.parametrize(
    "text", ["{}", "[1]", '{"log_snr": [1, 0], "mse": [[1, 1]], "x0_mse": [[1, 1]], "reconstruction": [0, 0]}']
)
def test_a_file_that_is_no_curve_is_refused(text):
    with pytest.raises(ValueError, match="not a denoising curve of this version"):
        DenoisingCurve.from_json(text)
