"""Adaptive Dormand-Prince 5(4) for dy/dt = F(t, y), in which every row is an initial value problem of its own.

    k_i = F(t + c_i h, y + h sum_j a_ij k_j),   i = 1..7
    y_new = y + h sum_i b_i k_i,   error = h sum_i (b_i - b^_i) k_i

The seventh stage is taken at (t + h, y_new), so an accepted step passes it on as the next one's first: six evaluations
a step. Rows evaluate the same stage together, each with its own step size, and a finished row drops out. The numbers of
a row come from exactly rounded elementwise operations and from powers taken one by one, so they are bitwise the same
whatever other rows there are.

Sources: the pair is RK5(4)7M of Dormand and Prince (1980), J. Comput. Appl. Math. 6, 19-26; the first step and the
step size control are those of Hairer, Norsett and Wanner, Solving ODEs I, section II.4, with the constants of SciPy's
RK45.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.tensors import expand_to

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)  # c_2 .. c_7
STAGE_WEIGHTS = (  # a_i1 .. a_i,i-1 of i = 2 .. 7; the last are also b_1 .. b_6, and b_7 = 0
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR_WEIGHTS = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # b_i - b^_i
STEP_EXPONENT = 1 / 5  # the error estimate is O(h^5)
SAFETY, MIN_FACTOR, MAX_FACTOR = 0.9, 0.2, 10.0


class DormandPrince:
    """B independent rows from t = start to t = end, either of which may be the larger.

    A step is accepted if the root mean square of error / (atol + rtol max(|y|, |y_new|)) over the row's elements is
    below 1. A step with a slope F that is not finite is rejected, and tried again with a smaller step size.

    Args:
        y: the state at `start`, [B, ...] of a floating dtype and on any device.
        start: initial t.
        end: final t.
        rtol: relative tolerance, above 0.
        atol: absolute tolerance, in the units of y, above 0.
        max_evaluations: evaluations of one row after which it is given up.

    Attributes:
        y: the state, [B, ...]; the result once `want()` returns None.
        evaluations: evaluations that each row used, rejected steps included, int64 [B].

    Raises:
        ValueError: a tolerance that is not above 0.
    """

    def __init__(
        self, y: Tensor, start: float, end: float, rtol: float, atol: float, max_evaluations: int = 10_000
    ) -> None:
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not value > 0:
                raise ValueError(f"{name} = {value}; allowed: above 0, such as 1e-5")
        self.y = y.detach().clone()
        self.evaluations = torch.zeros(len(y), dtype=torch.int64)
        self.rtol, self.atol, self.max_evaluations = rtol, atol, max_evaluations
        self.end = torch.tensor(end, dtype=torch.float64)
        self.direction = math.copysign(1.0, end - start)
        # One entry for each unfinished row from here on.
        self.rows = torch.arange(len(y) if start != end and y.numel() else 0)
        self.t = torch.full(self.rows.shape, start, dtype=torch.float64)
        self.step: Tensor | None = None
        self.rejected = torch.zeros(self.rows.shape, dtype=torch.bool)
        self.slopes: list[Tensor] = []
        self.target, self.query_t, self.query_y = self.t, self.t, self.y[self.rows]

    def want(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """What to evaluate next, for unfinished rows only, or None at the end.

        Returns:
            The rows' indices, int64 [R], their t, float64 [R] on the CPU, and their y, [R, ...].
        """
        return (self.rows, self.query_t, self.query_y) if len(self.rows) else None

    def feed(self, slope: Tensor) -> None:
        """Take the slopes F(t, y) at what `want()` returned, [R, ...].

        Raises:
            ValueError: slopes of another shape.
            ArithmeticError: a row that cannot go on: its first slope is not finite, its step is too small for float64,
                or it has used up `max_evaluations`.
        """
        if slope.shape != self.query_y.shape:
            raise ValueError(f"slope of shape {tuple(slope.shape)}; allowed: that of y, {tuple(self.query_y.shape)}")
        self.evaluations[self.rows] += 1
        self.slopes.append(slope.detach().to(self.y))
        if self.step is None:
            self._choose_first_step()
        elif len(self.slopes) == len(ERROR_WEIGHTS):
            self._finish_trial()
        else:
            self._next_stage()

    def _choose_first_step(self) -> None:
        """Hairer's rule: from the sizes of y and F at the start, and from the change of F over a probing step."""
        y, first = self.y[self.rows], self.slopes[0]
        distance = (self.end - self.t).abs()
        scale = self._scale(y, y)
        d_0, d_1 = _rms(y / scale), _rms(first / scale)
        self._refuse(~d_1.isfinite(), "the slope there is not finite; change where it starts")
        h_0 = torch.where((d_0 < 1e-5) | (d_1 < 1e-5), 1e-6, 0.01 * d_0 / d_1).minimum(distance)
        if len(self.slopes) == 1:
            self.query_t = self._ahead(h_0)
            self.query_y = y + expand_to(self.direction * h_0, y) * first
            return
        d_2 = _rms((self.slopes[1] - first) / scale) / h_0
        change = torch.maximum(d_1, d_2)
        h_1 = torch.where((change > 1e-15) & d_2.isfinite(), _power(0.01 / change, STEP_EXPONENT), h_0)
        self.step = torch.minimum(100 * h_0, h_1)
        self._start_trial(self.step, first)

    def _start_trial(self, step: Tensor, first: Tensor) -> None:
        """Start a trial step of each row, given the slope at its t."""
        resolved = (torch.nextafter(self.t, self.direction * torch.full_like(self.t, math.inf)) - self.t).abs()
        advice = "choose a larger rtol or atol, or a narrower range of time"
        self._refuse(self.rejected & (step < 10 * resolved), f"its step is too small for float64; {advice}")
        exhausted = self.evaluations[self.rows] + len(NODES) > self.max_evaluations
        self._refuse(exhausted, f"it has used up max_evaluations = {self.max_evaluations}; {advice}")
        self.slopes = [first]
        self.target = self._ahead(torch.maximum(step, 10 * resolved))
        self._next_stage()

    def _next_stage(self) -> None:
        """Request the stage that follows those already evaluated."""
        stage, h, y = len(self.slopes) - 1, self.target - self.t, self.y[self.rows]
        # t + h may differ from the target in its last bit.
        self.query_t = self.target if NODES[stage] == 1 else self.t + NODES[stage] * h
        self.query_y = y + expand_to(h, y) * _combine(self.slopes, STAGE_WEIGHTS[stage])

    def _finish_trial(self) -> None:
        """Accept or reject the trial step of each row, and drop the rows that have reached the end."""
        y, y_new, h = self.y[self.rows], self.query_y, self.target - self.t
        error = expand_to(h, y) * _combine(self.slopes, ERROR_WEIGHTS)
        # An infinite y_new would make the scale infinite and the error zero.
        size = _rms(torch.where(y_new.isfinite(), error / self._scale(y, y_new), math.inf)).nan_to_num(math.inf)
        accepted = size < 1
        factor = (SAFETY * _power(size.clamp(min=1e-300), -STEP_EXPONENT)).clamp(MIN_FACTOR, MAX_FACTOR)
        factor = torch.where(self.rejected, factor.clamp(max=1), factor)
        moved = expand_to(accepted, y).bool()
        self.y[self.rows] = torch.where(moved, y_new, y)
        first = torch.where(moved, self.slopes[-1], self.slopes[0])
        t = torch.where(accepted, self.target, self.t)
        going = t != self.end
        self.rows, self.t, self.rejected = self.rows[going], t[going], ~accepted[going]
        self.step = (h.abs() * factor)[going]
        self._start_trial(self.step, first[going])

    def _scale(self, y: Tensor, y_new: Tensor) -> Tensor:
        """atol + rtol max(|y|, |y_new|), in float64 so that a narrow dtype does not round the tolerances to 0."""
        return self.atol + self.rtol * torch.maximum(y.abs(), y_new.abs()).double()

    def _ahead(self, step: Tensor) -> Tensor:
        """t one step further, or the end if that would pass it."""
        reached = self.t + self.direction * step
        return torch.where(self.direction * (reached - self.end) > 0, self.end, reached)

    def _refuse(self, failed: Tensor, reason: str) -> None:
        if failed.any():
            first = int(failed.nonzero()[0])
            raise ArithmeticError(f"row {int(self.rows[first])} cannot go on from t = {float(self.t[first])}: {reason}")


def _combine(slopes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i k_i; a weight of 0 is not skipped, so that a slope that is not finite always shows."""
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        total = total + weight * slope
    return total


def _rms(x: Tensor) -> Tensor:
    """Root mean square of each row, float64 [R] on the CPU, by pairwise summation: a reduction's order depends on R."""
    squares = x.double().square().reshape(len(x), math.prod(x.shape[1:]))
    count = squares.shape[1]
    while (half := squares.shape[1] // 2) > 0:
        squares = torch.cat([squares[:, :half] + squares[:, half : 2 * half], squares[:, 2 * half :]], dim=1)
    return (squares[:, 0] / count).sqrt().cpu()


def _power(values: Tensor, exponent: float) -> Tensor:
    """values^exponent, one by one: the last bit of a vectorised power may depend on a value's position."""
    return torch.tensor([float(value) ** exponent for value in values], dtype=torch.float64)
