"""What a step trains on: a function of (seed, step, row), whoever asks and in whatever pieces."""

from collections import Counter
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion.config import (
    DdpmProcess,
    ImportanceTime,
    ObjectiveConfig,
    StratifiedTime,
    TimeSamplingConfig,
    UniformTime,
    VpProcess,
)
from diffusion.process.sde import make_process
from diffusion.time_sampling import LossMoments
from trainer.config.parallel import ParallelConfig
from trainer.config.run_config import RunConfig
from trainer.config.training import AugmentConfig, TrainingConfig
from trainer.worker.batch_plan import BatchPlan, PlannedRows, _epoch_order
from trainer.worker.deepspeed_config import batch_shape, deepspeed_config

SHAPE = (1, 2, 2)
STRATIFIED: TimeSamplingConfig = StratifiedTime()


TENSORS = ("t", "eps", "row_mask", "importance", "drop_label", "u")
ARRAYS = ("images", "flipped", "crop_offset")


def make(
    seed=3, size=50, batch=12, sampling: TimeSamplingConfig = STRATIFIED, steps=100, process=None, dropout=0.1
) -> BatchPlan:
    process = make_process(process or DdpmProcess(num_train_timesteps=steps))
    objective = ObjectiveConfig(time_sampling=sampling, label_dropout=dropout)
    moments = LossMoments(sampling) if isinstance(sampling, ImportanceTime) else None
    return BatchPlan(seed, size, changing(batch), process, objective, SHAPE, moments)


def changing(batch: int, **augment: Any) -> TrainingConfig:
    """Training that changes images in all ways, or in those named."""
    changes = AugmentConfig(**augment or {"horizontal_flip": True, "crop_padding": 2})
    return TrainingConfig(global_batch_size=batch, augment=changes, dequantise="uniform")


def same(a: PlannedRows, b: PlannedRows) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in TENSORS) and all(
        np.array_equal(getattr(a, f), getattr(b, f)) for f in ARRAYS
    )


def joined(parts: list[PlannedRows], count: int) -> PlannedRows:
    """The first `count` rows of consecutive parts."""
    tensors = {field: torch.cat([getattr(part, field) for part in parts])[:count] for field in TENSORS}
    arrays = {field: np.concatenate([getattr(part, field) for part in parts])[:count] for field in ARRAYS}
    return PlannedRows(**cast("dict[str, Any]", tensors | arrays))


@given(
    st.integers(0, 2**63 - 1),
    st.integers(1, 10**6),
    st.integers(1, 33),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.sampled_from([StratifiedTime(), UniformTime(), ImportanceTime(bins=4)]),
)
@settings(deadline=None, max_examples=60)
def test_any_split_into_ranks_and_micro_batches_gives_the_same_rows_bitwise(seed, step, batch, sizes, sampling):
    plan = make(seed=seed, batch=batch, sampling=sampling)
    whole = plan.rows(step, 0, batch)
    parts, first = [], 0
    while first < batch:
        size = sizes[len(parts) % len(sizes)]
        parts.append(plan.rows(step, first, size))
        first += size
    assert same(joined(parts, batch), whole)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 7])
def test_ranks_together_are_a_single_rank(world):
    config = RunConfig(training=TrainingConfig(global_batch_size=12), parallel=ParallelConfig(workers=(1, 12)))
    count = batch_shape(config, world).rows
    plan = make()
    ranks = [plan.rows(9, rank * count, count) for rank in range(world)]
    assert same(joined(ranks, 12), plan.rows(9, 0, 12))
    row_mask = torch.cat([rank.row_mask for rank in ranks])
    assert row_mask.tolist() == [1.0] * 12 + [0.0] * (world * count - 12)


@pytest.mark.parametrize(("size", "batch"), [(50, 12), (48, 12), (7, 12), (5, 1), (1, 3), (30, 7)])
def test_every_epoch_visits_every_image_exactly_once(size, batch):
    plan = make(size=size, batch=batch)
    epochs = 5
    steps = -(-epochs * size // batch)
    seen = np.concatenate([plan.rows(step, 0, batch).images for step in range(1, steps + 1)])
    for epoch in range(epochs):
        assert Counter(seen[epoch * size : (epoch + 1) * size].tolist()) == Counter(range(size))


def test_epochs_are_in_different_orders_and_seeds_too():
    plan = make(size=40, batch=40)
    first, second = plan.rows(1, 0, 40).images, plan.rows(2, 0, 40).images
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, make(seed=4, size=40, batch=40).rows(1, 0, 40).images)


def test_a_step_does_not_depend_on_the_steps_before_it():
    """Resuming is asking for the next step: a fresh process and a used one draw alike."""
    plan = make()
    used = [plan.rows(step, 0, 12) for step in range(1, 30)][-1]
    _epoch_order.cache_clear()
    assert same(make().rows(29, 0, 12), used)


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 10}])
def test_other_seeds_and_steps_draw_other_noise_and_times(change):
    base, other = make().rows(9, 0, 12), make(seed=change.get("seed", 3)).rows(change.get("step", 9), 0, 12)
    assert not bool((base.eps == other.eps).any())
    assert not torch.equal(base.t, other.t)


def test_changes_of_images_are_as_often_as_they_should_be():
    rows = make(batch=20_000).rows(1, 0, 20_000)
    assert abs(rows.flipped.mean() - 0.5) < 4 * 0.5 / 20_000**0.5
    offsets = Counter(map(tuple, rows.crop_offset.tolist()))
    assert set(offsets) == {(row, column) for row in range(5) for column in range(5)}
    assert max(abs(count / 800 - 1) for count in offsets.values()) < 4 / 800**0.5
    assert rows.u is not None
    assert 0 <= float(rows.u.min()) < 1e-3
    assert 1 - 1e-3 < float(rows.u.max()) < 1


def test_without_changes_asked_for_none_is_drawn_and_the_other_draws_are_the_same():
    plain = replace(make(), training=TrainingConfig(global_batch_size=12)).rows(4, 0, 12)
    assert (plain.flipped.any(), plain.crop_offset.any(), plain.u) == (False, False, None)
    changed = make().rows(4, 0, 12)
    assert all(torch.equal(getattr(plain, field), getattr(changed, field)) for field in TENSORS if field != "u")
    assert np.array_equal(plain.images, changed.images)


def test_whether_an_image_is_mirrored_does_not_depend_on_the_crop():
    cropped = replace(make(), training=changing(12, horizontal_flip=True, crop_padding=1))
    assert np.array_equal(cropped.rows(4, 0, 12).flipped, make().rows(4, 0, 12).flipped)


def test_rows_of_one_batch_have_different_noise():
    eps = make(batch=64).rows(1, 0, 64).eps.flatten(1)
    assert len(torch.unique(eps, dim=0)) == 64


def test_stratification_is_over_the_global_batch_and_not_per_rank():
    """Statement 13's bug: every rank drawing the same t. Here the ranks together cover 1..T once each."""
    plan = make(batch=100, steps=100)
    t = torch.cat([plan.rows(5, rank * 25, 25).t for rank in range(4)])
    assert sorted(t.tolist()) == list(range(1, 101))


def test_continuous_times_cover_the_process_evenly():
    plan = make(batch=100, process=VpProcess())
    process = plan.process
    share = (plan.rows(5, 0, 100).t - process.t_min) / (process.t_max - process.t_min)
    assert sorted((share * 100).long().tolist()) == list(range(100))


def test_importance_moves_times_to_large_losses_and_weighs_them_down():
    plan = make(batch=200, sampling=ImportanceTime(bins=4, uniform=0.2))
    assert plan.moments is not None
    assert plan.rows(1, 0, 200).importance.unique().tolist() == [1.0]
    fractions = plan.time_fractions(1)[0]
    plan.moments.update(fractions, np.where(fractions < 0.25, 8.0, 1.0))
    rows = plan.rows(2, 0, 200)
    early = rows.t <= 25
    chance = 0.2 / 4 + 0.8 * 8 / 11
    assert int(early.sum()) == pytest.approx(200 * chance, abs=1)
    assert rows.importance[early].unique().tolist() == pytest.approx([0.25 / chance])


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (0.25, 200, 300)])
def test_labels_are_hidden_as_often_as_asked_and_by_key(dropout, low, high):
    plan = make(batch=1000, dropout=dropout)
    drop_label = plan.rows(1, 0, 1000).drop_label
    assert low <= int(drop_label.sum()) <= high
    assert bool((drop_label == plan.rows(1, 0, 1000).drop_label).all())
    assert dropout == 0 or not torch.equal(drop_label, plan.rows(2, 0, 1000).drop_label)


def test_padding_has_no_weight_and_is_made_of_valid_rows():
    rows = make(batch=5).rows(2, 3, 6)
    assert rows.row_mask.tolist() == [1, 1, 0, 0, 0, 0]
    assert ((rows.images >= 0) & (rows.images < 50)).all()
    assert bool(((rows.t >= 1) & (rows.t <= 100)).all())
    assert bool(torch.isfinite(rows.eps).all())


@given(st.integers(1, 2000), st.data())
@settings(deadline=None)
def test_batch_shape_holds_every_row_with_less_than_one_micro_batch_to_spare(batch, data):
    workers = data.draw(st.integers(1, min(batch, 64)))
    micro = data.draw(st.none() | st.integers(1, 64))
    config = RunConfig(
        training=TrainingConfig(global_batch_size=batch),
        parallel=ParallelConfig(workers=workers, micro_batch_size=micro),
    )
    shape = batch_shape(config, workers)
    assert shape.rows == shape.micro_rows * shape.micro_batches
    assert shape.rows * workers >= batch
    assert (shape.rows - shape.micro_rows) * workers < batch
    assert shape.micro_rows <= (micro or batch)
    described = deepspeed_config(config, workers)
    assert (described["train_micro_batch_size_per_gpu"], described["gradient_accumulation_steps"]) == (
        shape.micro_rows,
        shape.micro_batches,
    )
