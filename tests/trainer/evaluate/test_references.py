"""References are computed once for a data set, an extractor and a set of images, and only whole ones are read."""

import json

import numpy as np
import pytest
import torch

from diffusion.frechet import Moments
from trainer.config.data import DataConfig
from trainer.config.evaluation import EvaluationConfig
from trainer.data.prepare import prepare
from trainer.evaluate.extractors import classifier
from trainer.evaluate.extractors.base import PixelExtractor
from trainer.evaluate.extractors.load import extractors_to_load, load_extractor
from trainer.evaluate.references.baselines import image_set, reference_sets, spread
from trainer.evaluate.references.cache import ARRAYS, RECORD, ReferenceCache


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(DataConfig(), tmp_path_factory.mktemp("storage"))


@pytest.fixture
def counted(monkeypatch):
    seen = []
    right = PixelExtractor.features
    monkeypatch.setattr(
        PixelExtractor, "features", lambda self, pixels: seen.append(len(pixels)) or right(self, pixels)
    )
    return seen


EXTRACTOR = PixelExtractor((1, 8, 8))


@pytest.mark.parametrize("name", ["train", "heldout", "gaussian-0-70", "noise-3-70"])
def test_moments_are_of_all_images_and_features_of_an_even_spread(data, tmp_path, name):
    found = ReferenceCache(tmp_path, kept=50).get(data, name, EXTRACTOR)
    images = image_set(data, name)
    features = EXTRACTOR.features(images[:])
    whole = Moments.of(features)
    assert found.moments.count == len(images)
    torch.testing.assert_close(found.moments.outer, whole.outer, rtol=1e-12, atol=0)
    assert np.array_equal(found.rows, spread(len(images), 50))
    assert torch.equal(found.features, features[torch.from_numpy(found.rows)].float())


def test_what_is_kept_is_read_and_what_is_spoilt_is_computed_anew(data, tmp_path, counted):
    cache = ReferenceCache(tmp_path)
    first = cache.get(data, "heldout", EXTRACTOR)
    assert sum(counted) == 360
    again = cache.get(data, "heldout", EXTRACTOR)
    assert sum(counted) == 360
    assert torch.equal(first.moments.outer, again.moments.outer)
    assert torch.equal(first.features, again.features)
    (arrays,) = tmp_path.rglob(ARRAYS)
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"x")
    assert torch.equal(cache.get(data, "heldout", EXTRACTOR).features, first.features)
    assert sum(counted) == 720
    (record,) = tmp_path.rglob(RECORD)
    record.write_text("{")
    cache.get(data, "heldout", EXTRACTOR)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"fingerprint": "0" * 64}))
    cache.get(data, "heldout", EXTRACTOR)
    assert sum(counted) == 1440


def test_sets_are_named_by_what_they_depend_on():
    found = reference_sets(EvaluationConfig(seed=7, samples=100))
    assert found == {"train": "train", "heldout": "heldout", "gaussian": "gaussian-7-100", "noise": "noise-7-100"}


def test_a_classifier_is_trained_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "EPOCHS", 1)
    config = EvaluationConfig()
    first = load_extractor("classifier", config, data, tmp_path)
    monkeypatch.setattr(classifier, "train_extractor", None)
    assert load_extractor("classifier", config, data, tmp_path).sha256 == first.sha256
    assert [each.name for each in extractors_to_load(config, data, tmp_path)] == ["classifier", "pixels"]
    (file,) = tmp_path.glob("classifier-*.safetensors")
    file.write_bytes(b"spoilt")
    with pytest.raises(TypeError):  # it is trained again
        load_extractor("classifier", config, data, tmp_path)
