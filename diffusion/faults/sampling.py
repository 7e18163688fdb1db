"""Faults in the solvers."""
# wrong versions take whatever the right ones take:
# pyright: basic

from collections.abc import Callable
from typing import Any

from torch import Tensor

from diffusion.faults.fault import Fault
from diffusion.solvers import ddim, dpmpp_2m, dpmpp_2m_sde

EXTRAPOLATED = (dpmpp_2m, dpmpp_2m_sde)


def _first_order(right: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG001
    return lambda x_0, h, x_0_previous, h_previous: x_0  # noqa: ARG005


def _whole_log_snr(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x_0, h, x_0_previous, h_previous: right(x_0, h, x_0_previous, 2 * h_previous)


def _half_variance(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(solver: Any) -> Tensor:  # noqa: ANN401
        return right(solver) / 2

    return wrong


FAULTS = {
    "dpmpp-2m-first-order": Fault("DPM-Solver++ forgets its history", 9, EXTRAPOLATED, "extrapolated", _first_order),
    "dpmpp-2m-whole-log-snr": Fault(
        "its last h in log-SNR, not half of it", 9, EXTRAPOLATED, "extrapolated", _whole_log_snr
    ),
    "ddim-half-variance": Fault("DDIM adds half of its variance", 11, (ddim,), "step_variances", _half_variance),
}
