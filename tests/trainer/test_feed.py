"""Batches made ahead are the batches made on demand."""

import numpy as np
import pytest
import torch

from diffusion.config import DdpmProcess, ImportanceTime, ObjectiveConfig, StratifiedTime, TimeSamplingConfig
from diffusion.images import to_model_range
from diffusion.sde import make_process
from diffusion.time_sampling import LossMoments
from trainer.draws import Draws
from trainer.feed import Feed

IMAGES = np.arange(50 * 4, dtype=np.uint8).reshape(50, 2, 2, 1)
LABELS = torch.arange(50) % 5


def feed(sampling: TimeSamplingConfig | None = None, labels: torch.Tensor | None = LABELS) -> Feed:
    sampling = sampling or StratifiedTime()
    objective = ObjectiveConfig(time_sampling=sampling, label_dropout=0.3)
    moments = LossMoments(sampling) if isinstance(sampling, ImportanceTime) else None
    draws = Draws(3, 50, 12, make_process(DdpmProcess(num_train_timesteps=100)), objective, (1, 2, 2), moments)
    return Feed(draws, IMAGES, labels, 5)


@pytest.fixture
def looking_ahead():
    made = feed()
    yield made
    made.close()


@pytest.mark.parametrize("wanted", [[1, 2, 3, 4], [1, 2, 7, 8, 3], [5]])
def test_steps_in_any_order_get_their_own_rows(looking_ahead, wanted):
    for step in wanted:
        batch = looking_ahead.batch(step, 4, 6)
        rows = looking_ahead.draws.rows(step, 4, 6)
        assert np.array_equal(batch.rows.images, rows.images)
        assert torch.equal(batch.rows.eps, rows.eps)

        assert torch.equal(batch.x_0, to_model_range(IMAGES[rows.images]))
        assert torch.equal(batch.label, torch.where(rows.hidden, torch.tensor(5), LABELS[rows.images]))


def test_another_range_of_rows_is_not_what_was_made_ahead(looking_ahead):
    looking_ahead.batch(1, 0, 6)
    assert torch.equal(looking_ahead.batch(2, 6, 6).rows.eps, looking_ahead.draws.rows(2, 6, 6).eps)


def test_where_t_depends_on_the_losses_nothing_is_made_ahead():
    made = feed(ImportanceTime(bins=4))
    made.batch(1, 0, 12)
    moments = made.draws.moments
    assert moments is not None
    moments.update(made.draws.shares(1)[0], np.linspace(0, 9, 12))
    after = made.batch(2, 0, 12).rows
    assert torch.equal(after.t, made.draws.rows(2, 0, 12).t)
    assert torch.equal(after.importance, made.draws.rows(2, 0, 12).importance)
    made.close()


def test_a_network_without_classes_is_told_nothing():
    made = feed(labels=None)
    assert made.batch(1, 0, 3).label is None
    made.close()
