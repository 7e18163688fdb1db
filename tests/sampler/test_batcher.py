"""The engine: requests share evaluations, and their images do not depend on it."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.config import Ancestral, ClassifierFree, Ddim, Dpmpp2M, SolverConfig
from diffusion.solvers import Sampler, Solver, drive
from sampler.batcher import MAX_ACTIVE_PARTS, Batcher, BusyError
from sampler.models import Model, load, resolve
from sampler.requests import NonFiniteError, Start

CONFIGS = (Ancestral(num_steps=12), Ddim(num_steps=7, eta=0.5), Dpmpp2M(num_steps=9))


class Gate:
    """A network whose evaluations are counted and held until the gate opens."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.calls: list[int] = []
        self.entered = threading.Semaphore(0)
        self.passes = threading.Semaphore(0)
        self.open = False

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        self.entered.release()
        if not self.open:
            assert self.passes.acquire(timeout=30)
        self.calls.append(len(x))
        return self.model.denoiser.output(x, t, label)

    def wait(self) -> None:
        """Until the next evaluation has been entered."""
        assert self.entered.acquire(timeout=30)

    def release(self) -> None:
        """Let everything through."""
        self.open = True
        self.passes.release()


def start(model: Model, config: SolverConfig, seed: int) -> Start:
    return lambda images: model.solver(config, seed, images)


def assert_same(images: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of evaluations of another batch size."""
    torch.testing.assert_close(images, expected, atol=2e-5, rtol=0.0)


def alone(model: Model, config: SolverConfig, seed: int, images: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return drive(model.denoiser, model.solver(config, seed, images))


@pytest.fixture
def gate(model: Model) -> Gate:
    return Gate(model)


@pytest.fixture
def batcher(gate: Gate) -> Iterator[Batcher]:
    batcher = Batcher(gate, max_rows=16, max_images=64)
    yield batcher
    gate.release()
    batcher.close()


def test_requests_share_evaluations_and_get_the_images_they_get_alone(
    model: Model, gate: Gate, batcher: Batcher
) -> None:
    first = batcher.submit(start(model, CONFIGS[0], 0), range(3))
    gate.wait()
    others = [batcher.submit(start(model, config, seed), range(3)) for seed, config in enumerate(CONFIGS[1:], 1)]
    gate.release()
    for seed, (future, config) in enumerate(zip([first, *others], CONFIGS, strict=True)):
        assert_same(future.result(30), alone(model, config, seed, range(3)))
    # The first step of the first request goes alone; the two late joiners then share its other 11 evaluations.
    assert gate.calls == [3] + [9] * 7 + [6] * 2 + [3] * 2


@pytest.mark.parametrize("max_rows", [1, 3, 16])
def test_requests_with_labels_with_guidance_and_with_neither_share_evaluations(classed: Path, max_rows: int) -> None:
    model = load(resolve(str(classed)))
    asked = [(None, None), (2, None), (1, ClassifierFree(scale=3.0)), (1, ClassifierFree(scale=0.0))]
    gate = Gate(model)
    batcher = Batcher(gate, max_rows=max_rows)
    solvers = [partial(model.solver, CONFIGS[0], 4, label=label, guidance=guidance) for label, guidance in asked]
    futures = [batcher.submit(solver, range(2)) for solver in solvers]
    gate.release()
    images = [future.result(30) for future in futures]
    batcher.close()
    for result, solver in zip(images, solvers, strict=True):
        with torch.no_grad():
            assert_same(result, drive(model.denoiser, solver(range(2))))
    assert_same(images[3], images[0])  # guided by 0: the model without a label
    assert sum(gate.calls) == CONFIGS[0].num_steps * 2 * (1 + 1 + 2 + 2)
    assert max(gate.calls) <= max(max_rows, 2)


def test_an_image_is_the_same_in_any_request(model: Model, gate: Gate, batcher: Batcher) -> None:
    gate.release()
    many = batcher.submit(start(model, CONFIGS[0], 5), range(9)).result(30)
    few = batcher.submit(start(model, CONFIGS[0], 5), [7, 2]).result(30)
    assert_same(few, many[[7, 2]])


def test_a_large_request_is_split_and_kept_in_order(model: Model, gate: Gate, batcher: Batcher) -> None:
    gate.release()
    images = batcher.submit(start(model, CONFIGS[2], 1), range(37)).result(30)
    assert_same(images, alone(model, CONFIGS[2], 1, range(37)))
    assert max(gate.calls) == 16
    assert sum(gate.calls) == 37 * CONFIGS[2].num_steps


def test_a_small_request_is_not_crowded_out_by_a_large_one(model: Model, gate: Gate, batcher: Batcher) -> None:
    batcher.submit(start(model, Ancestral(num_steps=100), 0), range(60))
    gate.wait()
    small = batcher.submit(start(model, CONFIGS[2], 1), range(1))
    evaluations: list[int] = []
    small.add_done_callback(lambda _: evaluations.append(len(gate.calls)))
    gate.release()
    small.result(30)
    # Of five parts in progress four fit, so each waits every fifth time.
    assert evaluations[0] <= 1 + CONFIGS[2].num_steps * (MAX_ACTIVE_PARTS + 1) / MAX_ACTIVE_PARTS + 1


def test_cancelled_rows_leave_before_the_next_evaluation(model: Model, gate: Gate, batcher: Batcher) -> None:
    stays = batcher.submit(start(model, CONFIGS[0], 0), range(2))
    gate.wait()
    goes = batcher.submit(start(model, CONFIGS[0], 1), range(4))
    gate.passes.release()
    gate.wait()
    assert goes.cancel()
    gate.release()
    assert_same(stays.result(30), alone(model, CONFIGS[0], 0, range(2)))
    assert gate.calls == [2, 6] + [2] * 10
    with pytest.raises(CancelledError):
        goes.result(0)


def test_a_failing_request_leaves_the_others(model: Model, gate: Gate, batcher: Batcher) -> None:
    class Poisoned:
        """A solver whose rows are NaN."""

        def __init__(self, solver: Solver) -> None:
            self.solver = solver
            self.solver.x = torch.full_like(solver.x, torch.nan)

        def __getattr__(self, name: str) -> object:
            return getattr(self.solver, name)

    def refuse(images: Sequence[int]) -> Sampler:
        raise KeyError(len(images))

    good = batcher.submit(start(model, CONFIGS[0], 0), range(3))
    gate.wait()
    nan = batcher.submit(lambda images: Poisoned(model.solver(CONFIGS[0], 1, images)), range(20))  # type: ignore[arg-type]
    broken = batcher.submit(refuse, range(3))
    gate.release()
    with pytest.raises(NonFiniteError, match="NaN"):
        nan.result(30)
    with pytest.raises(KeyError):
        broken.result(30)
    assert_same(good.result(30), alone(model, CONFIGS[0], 0, range(3)))
    assert batcher.alive


def test_a_failing_network_fails_the_request_and_not_the_engine(model: Model) -> None:
    answers = iter([RuntimeError("out of memory")])

    def evaluate(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        for error in answers:
            raise error
        return model.denoiser.output(x, t, label)

    batcher = Batcher(evaluate)
    with pytest.raises(RuntimeError, match="out of memory"):
        batcher.submit(start(model, CONFIGS[0], 0), range(40)).result(30)
    assert batcher.submit(start(model, CONFIGS[0], 0), range(2)).result(30).shape == (2, 1, 8, 8)
    batcher.close()


def test_busy_until_images_are_done_or_cancelled(model: Model, gate: Gate, batcher: Batcher) -> None:
    held = batcher.submit(start(model, CONFIGS[0], 0), range(60))
    with pytest.raises(BusyError, match="60 images are in progress and at most 64"):
        batcher.submit(start(model, CONFIGS[0], 0), range(5))
    held.cancel()
    later = batcher.submit(start(model, CONFIGS[0], 0), range(5))
    gate.release()
    assert later.result(30).shape == (5, 1, 8, 8)


def test_no_images_is_refused(model: Model, batcher: Batcher) -> None:
    with pytest.raises(ValueError, match="at least one"):
        batcher.submit(start(model, CONFIGS[0], 0), ())


def test_closing_cancels_what_is_unfinished(model: Model, gate: Gate) -> None:
    batcher = Batcher(gate)
    future = batcher.submit(start(model, CONFIGS[0], 0), range(2))
    gate.wait()
    threading.Thread(target=gate.release).start()
    batcher.close()
    assert not batcher.alive
    assert future.cancelled() or future.done()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(start(model, CONFIGS[0], 0), range(2))
