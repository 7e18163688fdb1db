"""Batches made ahead are the batches made on demand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion.config import DdpmProcess, ImportanceTime, ObjectiveConfig, StratifiedTime, TimeSamplingConfig
from diffusion.images import to_model_range
from diffusion.process.sde import make_process
from diffusion.time_sampling import LossMoments
from trainer.config.training import AugmentConfig, TrainingConfig
from trainer.worker.augment import augmented
from trainer.worker.batch_plan import BatchPlan
from trainer.worker.batches import BatchLoader

IMAGES = np.arange(50 * 4, dtype=np.uint8).reshape(50, 2, 2, 1)
LABELS = torch.arange(50) % 5
CPU = torch.device("cpu")


def loader(sampling: TimeSamplingConfig | None = None, labels: torch.Tensor | None = LABELS) -> BatchLoader:
    sampling = sampling or StratifiedTime()
    objective = ObjectiveConfig(time_sampling=sampling, label_dropout=0.3)
    moments = LossMoments(sampling) if isinstance(sampling, ImportanceTime) else None
    training = TrainingConfig(global_batch_size=12)
    plan = BatchPlan(3, 50, training, make_process(DdpmProcess(num_train_timesteps=100)), objective, (1, 2, 2), moments)
    return BatchLoader(plan, IMAGES, labels, 5, CPU)


@pytest.fixture
def looking_ahead():
    made = loader()
    yield made
    made.close()


@pytest.mark.parametrize("wanted", [[1, 2, 3, 4], [1, 2, 7, 8, 3], [5]])
def test_steps_in_any_order_get_their_own_rows(looking_ahead, wanted):
    for step in wanted:
        batch = looking_ahead.batch(step, 4, 6)
        rows = looking_ahead.plan.rows(step, 4, 6)
        assert np.array_equal(batch.rows.images, rows.images)
        assert torch.equal(batch.rows.eps, rows.eps)

        assert torch.equal(batch.x_0, to_model_range(IMAGES[rows.images]))
        assert torch.equal(batch.label, torch.where(rows.drop_label, torch.tensor(5), LABELS[rows.images]))


def test_images_are_changed_and_made_continuous_before_the_network_sees_them(looking_ahead):
    augment = AugmentConfig(horizontal_flip=True, crop_padding=1)
    training = TrainingConfig(global_batch_size=12, augment=augment, dequantise="uniform")
    plan = replace(looking_ahead.plan, training=training)
    made = BatchLoader(plan, IMAGES, LABELS, 5, CPU)
    batch = made.batch(3, 0, 12)
    made.close()
    rows = plan.rows(3, 0, 12)
    assert rows.u is not None
    pixels = augmented(IMAGES[rows.images], rows.flipped, rows.crop_offset, 1)
    assert not np.array_equal(pixels, IMAGES[rows.images])
    expected = 2 * (torch.from_numpy(pixels).permute(0, 3, 1, 2).double() + rows.u) / 256 - 1
    assert torch.equal(batch.x_0, expected.float())


def test_another_range_of_rows_is_not_what_was_made_ahead(looking_ahead):
    looking_ahead.batch(1, 0, 6)
    assert torch.equal(looking_ahead.batch(2, 6, 6).rows.eps, looking_ahead.plan.rows(2, 6, 6).eps)


def test_where_t_depends_on_the_losses_nothing_is_made_ahead():
    made = loader(ImportanceTime(bins=4))
    made.batch(1, 0, 12)
    moments = made.plan.moments
    assert moments is not None
    moments.update(made.plan.time_fractions(1)[0], np.linspace(0, 9, 12))
    after = made.batch(2, 0, 12).rows
    assert torch.equal(after.t, made.plan.rows(2, 0, 12).t)
    assert torch.equal(after.importance, made.plan.rows(2, 0, 12).importance)
    made.close()


def test_a_network_without_classes_is_told_nothing():
    made = loader(labels=None)
    assert made.batch(1, 0, 3).label is None
    made.close()
