"""Extractors by their names."""

from pathlib import Path

from trainer.config.evaluation import EvaluationConfig, ExtractorName
from trainer.data.dataset import Dataset
from trainer.evaluate.extractors.base import FeatureExtractor, PixelExtractor
from trainer.evaluate.extractors.classifier import kept_extractor
from trainer.evaluate.extractors.dimensions import extractors_of
from trainer.evaluate.extractors.efficientnet import load_efficientnet
from trainer.evaluate.extractors.inception import load_inception


def load_extractor(name: ExtractorName, config: EvaluationConfig, data: Dataset, references: Path) -> FeatureExtractor:
    """An extractor, checked to be what it says.

    Args:
        name: one of `config.extractors`, or `pixels`.
        config: which says the classifier's seed and where the Inception file is.
        data: what the classifier learns.
        references: where classifiers are kept.

    Raises:
        ValueError: weights that are not there, or not those named.
    """
    match name:
        case "pixels":
            return PixelExtractor(data.info.image_shape)
        case "classifier":
            return kept_extractor(references, data, config.classifier_seed)
        case "efficientnet_lite0":
            return load_efficientnet()
        case "inception":
            return load_inception(Path(str(config.inception_file)), config.inception_sha256)


def extractors_to_load(config: EvaluationConfig, data: Dataset, references: Path) -> list[FeatureExtractor]:
    """Those that samples are compared by, and `pixels`, which nearest neighbours are told by."""
    names: dict[ExtractorName, None] = dict.fromkeys([*extractors_of(config, data.info.classes), "pixels"])
    return [load_extractor(name, config, data, references) for name in names]
