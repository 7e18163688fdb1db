"""Whether the weights of an evaluation's feature extractors are there and load, asked before any worker starts."""

from collections.abc import Callable
from pathlib import Path

from trainer.config.evaluation import EvaluationConfig
from trainer.errors import InputError


def check_extractors(config: EvaluationConfig) -> None:
    """Refuse weights of extractors that are not there or not what they say: the end of an evaluation would find out.

    Raises:
        InputError: naming the setting.
    """
    if config.samples_images and "efficientnet_lite0" in config.extractors:
        from trainer.evaluate.extractors.efficientnet import load_efficientnet

        _loads("evaluation.extractors", load_efficientnet)
    if config.samples_images and config.inception_file is not None:
        from trainer.evaluate.extractors.inception import load_inception

        _loads("evaluation.inception_file", load_inception, Path(config.inception_file), config.inception_sha256)


def _loads(setting: str, load: Callable[..., object], *arguments: object) -> None:
    try:
        load(*arguments)
    except ValueError as error:
        raise InputError(f"{setting}: {error}") from None
