"""Adaptive Dormand-Prince: step for step SciPy's RK45 on each row, the same bits in any company, order, failures."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from diffusion.solvers.dormand_prince import DormandPrince, _rms

Slope = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # F(rows, t, y)


def wanted(solver: DormandPrince) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query = solver.want()
    assert query is not None
    return query


def drive(solver: DormandPrince, slope: Slope) -> list[list[float]]:
    """Run to the end; the times each row was evaluated at."""
    visited: list[list[float]] = [[] for _ in solver.evaluations]
    while (query := solver.want()) is not None:
        for row, t in zip(query[0].tolist(), query[1].tolist(), strict=True):
            visited[row].append(t)
        solver.feed(slope(*query))
    return visited


def solve(slope: Slope, y: torch.Tensor, start: float, end: float, tol: float = 1e-6) -> DormandPrince:
    solver = DormandPrince(y, start, end, rtol=tol, atol=tol)
    drive(solver, slope)
    return solver


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def spread(rows: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """y' = rate y (1 - y^2) + t with the row's rate; exactly rounded elementwise operations alone."""
    rate, t = (v.to(y).reshape(-1, *[1] * (y.ndim - 1)) for v in (1.0 + 20 * (rows % 5), t))
    return rate * (y * (1 - y * y)) + t


def van_der_pol(t, y):
    return [y[1], 6 * (1 - y[0] ** 2) * y[1] - y[0]]


def lotka_volterra(t, y):
    return [1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3 * y[1]]


def forced(t, y):
    return [math.cos(3 * t) * y[0] - math.sin(y[1]), math.sin(t) - y[0] * y[1]]


def at_rest(t, y):
    return [0.0, 0.0]


def assert_takes_the_steps_of_scipys_rk45(problem, y: torch.Tensor, start: float, end: float, tol: float) -> None:
    atol = tol / 10
    solver = DormandPrince(y, start, end, tol, atol)
    visited = drive(solver, lambda rows, t, y: torch.stack([doubles(*problem(*at)) for at in zip(t, y, strict=True)]))
    for row in range(len(y)):
        asked: list[float] = []

        def record(t, v, asked=asked):
            asked.append(t)
            return problem(t, v)

        scipys = solve_ivp(record, (start, end), y[row].numpy(), method="RK45", rtol=tol, atol=atol)
        assert solver.evaluations[row] == scipys.nfev
        # An estimate of the error carries the rounding of y, 1e-16 to its own atol or less, and the steps follow it.
        np.testing.assert_allclose(visited[row], asked, rtol=1e-14 / atol, atol=0)
        np.testing.assert_allclose(solver.y[row], scipys.y[:, -1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tol", [1e-4, 1e-7])
@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (1.5, 0.25)], ids=["forward", "backward"])
@pytest.mark.parametrize("problem", [van_der_pol, lotka_volterra, forced, at_rest])
def test_each_row_takes_the_steps_of_scipys_rk45(problem, start, end, tol):
    y = torch.tensor([[0.5, 0.9], [0.0, 0.0], [0.25, -0.7], [-0.1, 0.3], [1.0, 0.0]], dtype=torch.float64)
    assert_takes_the_steps_of_scipys_rk45(problem, y, start, end, tol)


@pytest.mark.parametrize("problem", [at_rest, forced])
def test_first_steps_that_float64_does_not_resolve_are_lengthened_as_scipys_are(problem):
    assert_takes_the_steps_of_scipys_rk45(problem, torch.ones(2, 2).double(), 1e10, 1e10 + 3, 1e-4)


def test_steps_over_the_edge_of_a_slope_are_taken_back_as_scipys_are():
    met: list[bool] = []

    def edge(t, y):
        """Defined to just above the fixed point 1, which long steps overshoot."""
        met.append(bool((y > 1 + 1e-9).any()))
        return [math.nan if v > 1 + 1e-9 else 40 * (1 - v) for v in y]

    assert_takes_the_steps_of_scipys_rk45(edge, torch.tensor([[0.5, 0.9], [-0.1, 1.0]]).double(), 0.0, 2.0, 1e-4)
    assert any(met)


def assert_same_bits_in_any_company(y: torch.Tensor, companies: Sequence[Sequence[int]]) -> None:
    together = DormandPrince(y, 0.5, 1.0, 1e-4, 1e-4)
    visited = drive(together, spread)
    assert len(set(together.evaluations.tolist())) >= min(3, len(y)), "easy rows do not wait for stiff ones"
    for members in companies:
        index = torch.tensor(members)
        apart = DormandPrince(y[index], 0.5, 1.0, 1e-4, 1e-4)
        assert drive(apart, lambda rows, t, y, index=index: spread(index[rows], t, y)) == [visited[i] for i in members]
        assert torch.equal(apart.y, together.y[index])


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_is_the_same_bits_alone_and_among_others(shape, dtype):
    """With rows enough for vector instructions, whose powers differ from a single one's in one of 70."""
    y = torch.randn(35, *shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert_same_bits_in_any_company(y, [[0], [34], [2, 0], [4, 3, 1], range(9), [17], [22]])


def test_the_size_of_a_large_row_is_the_same_bits_alone_and_among_others():
    """With two threads, which torch's own mean puts to one row if it is alone, and to a row each if it is not."""
    x = torch.rand(6, 70_001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = _rms(x)
        apart = torch.cat([_rms(row[None]) for row in x])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, apart)
    np.testing.assert_allclose(together, np.sqrt(np.mean(x.numpy() ** 2, axis=1)), rtol=1e-14)


def test_a_finished_row_is_asked_for_no_more():
    solver = DormandPrince(torch.full((3, 2), 0.3), 0.0, 1.0, 1e-4, 1e-4)
    visited = drive(solver, spread)
    assert [len(times) for times in visited] == solver.evaluations.tolist()
    assert solver.evaluations[0] < solver.evaluations[1] < solver.evaluations[2]


@pytest.mark.parametrize(("start", "end"), [(0.1, 0.7), (0.7, 0.1), (-1 / 3, 1e-5)])
def test_times_stay_within_the_range_and_end_on_its_end(start, end):
    visited = drive(DormandPrince(torch.full((4, 2), 0.3), start, end, 1e-5, 1e-5), spread)
    for times in visited:
        assert (times[0], times[-1]) == (start, end)
        assert all(min(start, end) <= t <= max(start, end) for t in times)


def test_an_accepted_step_costs_six_evaluations():
    """y' = 0 from h = 1e-4 (SciPy's 100 h_0) grows tenfold a step, so the steps are known."""
    solver = solve(lambda rows, t, y: torch.zeros_like(y), doubles(0.0), 0.0, 0.1)
    steps = [1e-6 * 10**k for k in range(5)]  # 1e-6 .. 1e-2 come to 0.011111, and one more lands on 0.1
    assert sum(steps) < 0.1 < sum(steps) + 10 * steps[-1]
    assert solver.evaluations.tolist() == [2 + 6 * (len(steps) + 1)]


def test_the_error_follows_the_tolerance_and_the_work_its_fifth_root():
    """y' = y cos t from 1 is exp(sin t); error ~ tol and evaluations ~ tol^(-1/5)."""
    tols = 10.0 ** -np.arange(5, 13)
    runs = [solve(lambda rows, t, y: y * torch.cos(t), doubles(1.0), 0.0, 20.0, tol) for tol in tols]
    errors = [abs(float(run.y) - math.exp(math.sin(20.0))) for run in runs]
    works = [int(run.evaluations) for run in runs]
    assert np.polyfit(np.log(tols), np.log(errors), 1)[0] == pytest.approx(1, abs=0.15)
    assert np.polyfit(np.log(tols[3:]), np.log(works[3:]), 1)[0] == pytest.approx(-1 / 5, abs=0.02)


def test_backward_undoes_forward():
    y = torch.linspace(-0.9, 0.9, 12, dtype=torch.float64).reshape(4, 3)
    there = solve(lambda rows, t, y: torch.sin(3 * y) + t[:, None], y, 0.0, 0.5, 1e-11)
    back = solve(lambda rows, t, y: torch.sin(3 * y) + t[:, None], there.y, 0.5, 0.0, 1e-11)
    assert float((there.y - y).abs().min()) > 0.01
    torch.testing.assert_close(back.y, y, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "tol"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)]
)
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 2, 2)])
def test_dtype_and_shape_are_those_of_y(dtype, tol, shape):
    y = torch.full(shape, 0.5, dtype=dtype, requires_grad=True)
    solver = DormandPrince(y, 0.0, 1.0, tol, tol)
    rows, t, first = wanted(solver)
    assert (rows.dtype, t.dtype, first.dtype, first.shape) == (torch.int64, torch.float64, dtype, y.shape)
    assert torch.equal(first, wanted(solver)[2]), "asking changes nothing"
    drive(solver, lambda rows, t, y: -y.double())
    assert (solver.y.dtype, solver.y.shape, solver.y.requires_grad) == (dtype, y.shape, False)
    assert torch.equal(y, torch.full_like(y, 0.5))
    torch.testing.assert_close(
        solver.y.double(), torch.full(shape, 0.5 / math.e, dtype=torch.float64), rtol=0, atol=3 * tol
    )


@pytest.mark.parametrize(
    ("y", "end"), [(torch.zeros(0, 3), 1.0), (torch.zeros(0), 1.0), (torch.zeros(2, 0), 1.0), (torch.ones(2, 3), 0.0)]
)
def test_with_nothing_to_do_it_is_at_its_end(y, end):
    solver = DormandPrince(y, 0.0, end, 1e-5, 1e-5)
    assert solver.want() is None
    assert torch.equal(solver.y, y)
    assert solver.evaluations.tolist() == [0] * len(y)


@pytest.mark.parametrize("value", [0.0, -1e-5, math.nan])
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_a_tolerance_is_above_zero(name, value):
    with pytest.raises(ValueError, match=f"{name} = .*; allowed: above 0"):
        DormandPrince(torch.zeros(1), 0.0, 1.0, **{"rtol": 1e-5, "atol": 1e-5, name: value})


def test_a_slope_has_the_shape_of_y():
    solver = DormandPrince(torch.zeros(2, 3), 0.0, 1.0, 1e-5, 1e-5)
    with pytest.raises(ValueError, match=r"slope of shape \(2, 1\); allowed: that of y, \(2, 3\)"):
        solver.feed(torch.zeros(2, 1))


def on_row_1(wrong: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Slope:
    """y' = 0 on every row but row 1."""

    def slope(rows: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.where((rows == 1).reshape(-1, 1), wrong(t.reshape(-1, 1), y), 0.0)

    return slope


def test_a_solution_that_blows_up_is_named():
    """y' = y^2 from 1 is 1 / (1 - t)."""
    with pytest.raises(ArithmeticError, match=r"^row 1 .* t = (1\.0000|0\.9999).* too small .* larger rtol or atol"):
        solve(on_row_1(lambda t, y: y * y), torch.ones(3, 2, dtype=torch.float64), 0.0, 2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_slope_not_finite_beyond_some_time_stops_the_row_there(bad):
    with pytest.raises(ArithmeticError, match=r"row 1 .* t = 0\.(3000|2999)\d+: its step is too small"):
        solve(on_row_1(lambda t, y: torch.where(t > 0.3, bad, torch.cos(9 * t + y))), torch.ones(3, 2), 0.0, 1.0)


def test_a_slope_not_finite_at_the_start_is_named():
    with pytest.raises(ArithmeticError, match=r"row 1 .* t = 1\.0: the slope there is not finite"):
        solve(on_row_1(lambda t, y: y / (1 - t)), torch.ones(3, 2), 1.0, 0.0)


def test_a_slope_not_finite_at_the_probe_shortens_the_first_step():
    """|y| = 1 and |slope| = 1 probe at t = 0.01, where this slope is not finite, and is finite everywhere else."""
    solver = DormandPrince(doubles(1.0), 0.0, 1.0, 1e-6, 1e-6)
    visited = drive(solver, lambda rows, t, y: torch.where(t == 0.01, math.nan, -y))
    assert visited[0][1] == 0.01
    assert float(solver.y) == pytest.approx(math.exp(-1), abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("stage", range(7))
def test_a_slope_not_finite_at_any_stage_rejects_the_step(stage, bad):
    """Also at the second, whose weights b and b^ are 0, and with stages that forget what they are given."""
    solver = DormandPrince(doubles(0.0), 0.0, 1.0, 1e-3, 1e-3)
    ends = []
    for evaluation in range(2 + 6 + 6):
        if evaluation in (7, 13):
            ends.append(float(wanted(solver)[1]))
        solver.feed(doubles(bad if evaluation == 1 + stage and stage > 0 else 1.0))
    first, second = ends
    assert second == (0.2 * first if stage > 0 else min(1.0, first + 10 * first))


def test_a_y_that_overflows_rejects_the_step():
    with pytest.raises(ArithmeticError, match=r"row 0 .* too small"):
        solve(lambda rows, t, y: torch.full_like(y, 1e308), torch.full((1, 2), 1e308, dtype=torch.float64), 0.0, 1.0)


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 49, 50])
def test_no_row_exceeds_max_evaluations(limit):
    solver = DormandPrince(torch.full((3, 2), 0.3), 0.0, 1.0, 1e-4, 1e-4, max_evaluations=limit)
    with pytest.raises(ArithmeticError, match=rf"row \d .* used up max_evaluations = {limit}; choose a larger rtol"):
        drive(solver, spread)
    assert int(solver.evaluations.max()) == max(2, 2 + (limit - 2) // 6 * 6)


def test_max_evaluations_that_just_suffice():
    needed = int(solve(spread, torch.full((1, 2), 0.3), 0.0, 1.0, 1e-4).evaluations)
    drive(DormandPrince(torch.full((1, 2), 0.3), 0.0, 1.0, 1e-4, 1e-4, max_evaluations=needed), spread)
