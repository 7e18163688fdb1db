"""Parts of the training loop that need no engine: finiteness, EMA, meters, the rate."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion.ema import decay, gamma_from_sigma_rel
from tests.oracles.world import FlatMasters
from trainer.ema.sharded import EMA_KINDS, ShardedEma
from trainer.worker import meters
from trainer.worker.meters import EDGES, Meters, bucket_names
from trainer.worker.nonfinite import NonFiniteError, require_finite


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([1.0, math.nan, 2.0], "step 42: the loss is nan on rank 1;"),
        ([math.inf, 0.5, math.nan], "step 42: the loss is inf on rank 0, 2;"),
        ([-math.inf], "step 42: the loss is -inf on rank 0;"),
    ],
)
def test_a_loss_that_is_not_finite_names_step_and_rank(losses, message):
    with pytest.raises(NonFiniteError) as caught:
        require_finite(losses, 42)
    assert str(caught.value).startswith(message)
    assert "stopped before the optimizer step" in str(caught.value)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
@settings(deadline=None)
def test_finite_losses_pass_however_large(losses):
    require_finite([float(torch.tensor(loss, dtype=torch.float32).clamp(-3e38, 3e38)) for loss in losses], 1)


TAKEN, LEFT_OUT = torch.tensor(True), torch.tensor(False)
PARAMETERS = {"a": torch.zeros(37, 3), "b": torch.zeros(5), "c": torch.zeros(2, 2, 2)}


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", EMA_KINDS)
def test_sharded_ema_is_bitwise_the_ema_of_the_whole(world, kind):
    """The recursion of diffusion.ema on the gathered weights, against each rank's on its own part."""
    generator = torch.Generator().manual_seed(world)
    masters = [FlatMasters(PARAMETERS, rank, world) for rank in range(world)]
    emas = [ShardedEma(m.flats, (0.05, 0.2)) for m in masters]
    expected = {name: p.clone() for name, p in PARAMETERS.items()}
    gamma = gamma_from_sigma_rel((0.05, 0.2)[EMA_KINDS.index(kind)])
    for step in range(1, 40):
        weights = {name: torch.randn(p.shape, generator=generator) for name, p in PARAMETERS.items()}
        for name, average in expected.items():
            average.lerp_(weights[name], 1 - decay(step, gamma))
        for m, ema in zip(masters, emas, strict=True):
            for fragment in m.fragments:
                part = weights[fragment.name].flatten()[fragment.offset : fragment.offset + fragment.numel]
                fragment.of(m.flats).copy_(part)
            ema.update(step, TAKEN)
    for m, ema in zip(masters, emas, strict=True):
        for fragment in m.fragments:
            whole = expected[fragment.name].flatten()[fragment.offset : fragment.offset + fragment.numel]
            assert torch.equal(fragment.of(ema.tracks[kind]), whole)


def test_sharded_ema_has_the_profiles_exact_weights():
    """Masters that are 1 at one step and 0 at the others read off that step's weight: gamma's power function."""
    steps, gamma = 200, gamma_from_sigma_rel(0.1)
    masters = [torch.zeros(steps)]
    ema = ShardedEma(masters, (0.1, 0.2))
    for step in range(1, steps + 1):
        masters[0].zero_()[step - 1] = 1
        ema.update(step, TAKEN)
    weights = [
        (1 - decay(k, gamma)) * math.prod(decay(j, gamma) for j in range(k + 1, steps + 1)) for k in range(1, steps + 1)
    ]
    torch.testing.assert_close(ema.tracks[EMA_KINDS[0]][0], torch.tensor(weights), rtol=1e-4, atol=1e-8)


def test_ema_starts_as_a_copy_and_its_first_step_replaces_it():
    masters = [torch.ones(4)]
    ema = ShardedEma(masters, (0.1, 0.2))
    masters[0].fill_(7)
    assert ema.tracks[EMA_KINDS[0]][0].tolist() == [1] * 4
    ema.update(1, TAKEN)
    assert ema.tracks[EMA_KINDS[0]][0].tolist() == [7] * 4


def test_ema_stands_still_at_a_step_that_was_not_taken():
    masters = [torch.ones(4)]
    ema = ShardedEma(masters, (0.1, 0.2))
    ema.update(1, TAKEN)
    masters[0].fill_(7)
    ema.update(2, LEFT_OUT)
    assert [ema.tracks[kind][0].tolist() for kind in EMA_KINDS] == [[1] * 4] * 2


@pytest.fixture
def alone(monkeypatch):
    """A world of one: sums over ranks are this rank's."""
    monkeypatch.setattr(meters.dist, "get_world_size", lambda: 1)


def flushed(meter: Meters, batch: int) -> dict[str, float]:
    metrics = meter.flush(batch, meter.reduce().tolist(), meters.time.perf_counter())
    return {name: value for name, value in metrics.items() if not name.startswith("system/")}


def test_buckets_are_named_by_their_bounds():
    assert bucket_names()[0] == "epsilon_mse/log_snr_min_m8"
    assert "epsilon_mse/log_snr_m2_p0" in bucket_names()
    assert bucket_names()[-1] == "epsilon_mse/log_snr_p8_max"
    assert len(set(bucket_names())) == len(EDGES) + 1


def test_rows_are_averaged_in_the_bucket_of_their_log_snr_and_padding_is_not_counted(alone):
    meter = Meters(torch.device("cpu"))
    log_snr = torch.tensor([-20.0, -7.0, -7.9, 1.0, 9.0, 9.0], dtype=torch.float64)
    errors = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 1000.0])
    meter.add_rows(log_snr, errors, torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]), TAKEN)
    meter.add_rows(log_snr, errors * math.nan, torch.ones(6), LEFT_OUT)
    meter.add_step(3.0, 1.0)
    meter.add_step(5.0, 2.0)
    metrics = flushed(meter, 64)
    assert {
        name.removeprefix("epsilon_mse/log_snr_"): v for name, v in metrics.items() if name.startswith("epsilon")
    } == {
        "min_m8": 1.0,
        "m8_m6": 3.0,
        "p0_p2": 8.0,
        "p8_max": 16.0,
    }
    assert (metrics["loss"], metrics["gradient_norm"], meter.last_loss) == (4.0, 1.5, 5.0)


def test_images_per_second_counts_the_steps_since_the_last_flush(alone, monkeypatch):
    clock = iter([100.0, 102.0, 106.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(clock))
    meter = Meters(torch.device("cpu"))
    rates = []
    for count in (4, 2):
        for _ in range(count):
            meter.add_step(1.0, 1.0)
        rates.append(flushed(meter, 10)["images_per_second"])
    assert rates == [20.0, 5.0]


def test_a_window_of_skipped_steps_has_a_rate_and_no_loss(alone):
    meter = Meters(torch.device("cpu"))
    meter.add_skip()
    meter.add_skip()
    metrics = flushed(meter, 4)
    assert metrics.pop("images_per_second") > 0
    assert metrics == {"skipped_steps": 2.0, "waited_for_data": 0.0}
    meter.add_step(1.0, 1.0)
    assert "skipped_steps" not in flushed(meter, 4)


def test_a_flush_starts_afresh(alone):
    meter = Meters(torch.device("cpu"))
    meter.add_rows(torch.tensor([0.5]).double(), torch.tensor([9.0]), torch.ones(1), TAKEN)
    meter.add_step(9.0, 9.0)
    flushed(meter, 1)
    meter.add_step(1.0, 1.0)
    metrics = flushed(meter, 1)
    del metrics["images_per_second"]
    assert metrics == {"loss": 1.0, "gradient_norm": 1.0, "waited_for_data": 0.0}


def test_waiting_and_utilisation_are_shares_of_the_window(alone, monkeypatch):
    clock = iter([100.0, 102.0, 106.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(clock))
    meter = Meters(torch.device("cpu"), images_per_second_at_best=80.0)
    meter.add_step(1.0, 1.0)
    meter.add_waited(0.5)
    first = flushed(meter, 40)
    assert (first["images_per_second"], first["waited_for_data"], first["mfu"]) == (20.0, 0.25, 0.25)
    assert flushed(meter, 40)["waited_for_data"] == 0.0
