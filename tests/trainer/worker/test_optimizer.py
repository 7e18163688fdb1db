"""Clipping and leaving out on the device: against torch's own clipping, and bit by bit where nothing may move."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from trainer.config.training import OptimConfig
from trainer.worker import exchange
from trainer.worker.engine import ClippedAdamW, step
from trainer.worker.exchange import Exchange
from trainer.worker.report import Report

SHAPES = ((3, 4), (5,), (2, 2, 2))


def parameters(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(to: Sequence[nn.Parameter], seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in to:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clipping_is_torchs(scale):
    ours, theirs = parameters(0), parameters(0)
    optim = OptimConfig(weight_decay=0.1, max_grad_norm=0.5)
    clipped = ClippedAdamW(ours, optim)
    plain = torch.optim.AdamW(theirs, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=0.1, fused=True)
    for seed in range(5):
        give_gradients(ours, seed, scale)
        give_gradients(theirs, seed, scale)
        clipped.step()
        expected = nn.utils.clip_grad_norm_(theirs, optim.max_grad_norm)
        plain.step()
        assert clipped.norm is not None
        assert torch.equal(clipped.norm, expected)
        assert clipped.taken
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(clipped.state[a]["exp_avg_sq"], plain.state[b]["exp_avg_sq"])


def state(optimizer: ClippedAdamW, of: list[nn.Parameter]) -> list[Tensor]:
    return [value.clone() for each in of for value in (each.detach(), *optimizer.state[each].values())]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_step_that_is_not_finite_moves_nothing_and_the_next_is_as_if_it_had_not_been(bad):
    """Neither weights, nor moments, nor Adam's count of steps; None: the gradient is finite and a loss is not."""
    ours, spared = parameters(0), parameters(0)
    spoilt, plain = ClippedAdamW(ours, OptimConfig()), ClippedAdamW(spared, OptimConfig())
    for optimizer, each in ((spoilt, ours), (plain, spared)):
        give_gradients(each, 1, 1.0)
        optimizer.step()
    before = state(spoilt, ours)
    give_gradients(ours, 2, 1.0)
    if bad is not None:
        spoilt_gradient = ours[1].grad
        assert spoilt_gradient is not None
        spoilt_gradient[3] = bad
    spoilt.losses_finite = torch.tensor(bad is not None)
    spoilt.step()
    assert not spoilt.taken
    assert all(torch.equal(a, b) for a, b in zip(before, state(spoilt, ours), strict=True))
    spoilt.losses_finite = None
    for optimizer, each in ((spoilt, ours), (plain, spared)):
        give_gradients(each, 3, 1.0)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(state(spoilt, ours), state(plain, spared), strict=True))


@dataclass
class Engine:
    """A DeepSpeed engine that leaves a step out by itself, as it does where the optimizer's state is offloaded."""

    basic_optimizer: ClippedAdamW
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def step(self) -> None:
        """Nothing."""


def test_a_step_that_deepspeed_leaves_out_is_reported_as_left_out():
    norm, taken = step(Engine(ClippedAdamW(parameters(0), OptimConfig())))
    assert (float(norm), bool(taken)) == (math.inf, False)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_rank_gets_its_part_of_the_average(world, monkeypatch):
    """All ranks one after the other: what each sends is kept until all have, and then handed out."""
    offsets, numel = (0, 12, 17), -(-25 // world) * world
    sent, gradients = list[Tensor](), list[Tensor]()
    monkeypatch.setattr(exchange.dist, "get_world_size", lambda: world)
    ranks = [Exchange(own, offsets, numel) for own in (parameters(rank) for rank in range(world))]
    monkeypatch.setattr(exchange.dist, "all_to_all_single", lambda out, mine: sent.append(mine.clone()))
    for seed, rank in enumerate(ranks):
        give_gradients(rank._parameters, seed, 1.0)
        rank._parameters[1].grad = None if seed == 0 else rank._parameters[1].grad
        whole = torch.zeros(numel)
        for offset, parameter in zip(offsets, rank._parameters, strict=True):
            if parameter.grad is not None:
                whole[offset : offset + parameter.numel()] = parameter.grad.flatten()
        gradients.append(whole)
        rank._flat.fill_(7.0)  # of an earlier step
        rank._flat[25:] = 0.0  # but for the padding, which nobody writes
        rank.own_part()
        assert all(parameter.grad is None for parameter in rank._parameters)
    share, expected = numel // world, torch.stack(gradients).mean(0)
    for place, rank in enumerate(ranks):
        mine = slice(place * share, (place + 1) * share)
        monkeypatch.setattr(
            exchange.dist, "all_to_all_single", lambda out, _, mine=mine: out.copy_(torch.cat([s[mine] for s in sent]))
        )
        torch.testing.assert_close(rank.own_part(), expected[mine], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("window", [None, torch.arange(6.0)])
def test_a_report_says_what_went_into_it(window):
    losses = torch.tensor([[0.5, 1.0], [0.25, 0.0], [2.0, 0.0]])
    result = Report(7, losses, torch.tensor(3.5), torch.tensor(True), window).read()
    assert (result.step, result.losses, result.stop, result.norm, result.taken) == (
        7,
        [0.5, 0.25, 2.0],
        True,
        3.5,
        True,
    )
    assert result.window == ([] if window is None else [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    left_out = Report(8, losses[1:], torch.tensor(math.nan), torch.tensor(False), None).read()
    assert (left_out.stop, left_out.taken) == (False, False)
    assert math.isnan(left_out.norm)
