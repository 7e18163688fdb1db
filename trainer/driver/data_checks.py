"""Checks of the configuration against the data, before any worker starts; each message says what is allowed."""

from dataclasses import replace
from pathlib import Path

from diffusion.config import Autoguidance
from trainer.config.run_config import RunConfig
from trainer.data.dataset import Dataset
from trainer.errors import InputError
from trainer.evaluate.extractors.dimensions import check_sizes
from trainer.evaluate.extractors.requirements import check_extractors
from trainer.evaluate.references.published import check_published


def check_data(config: RunConfig, dataset: Dataset) -> None:
    """Refuse a network or an evaluation that does not fit the data, and a schedule that cannot be computed.

    Raises:
        InputError: naming the setting.
    """
    from diffusion.process.sde import make_process

    if config.network.classes not in (0, dataset.info.classes):
        raise InputError(
            f"network.classes = {config.network.classes}: data.source = {config.data.source!r} has "
            f"{dataset.info.classes or 'no'} classes; allowed: that number, or 0 for a model without"
        )
    try:
        make_process(config.process)
        config.network.check_image(*dataset.info.image_shape[1:])
    except ValueError as error:
        raise InputError(str(error)) from None
    _check_crop(config.training.augment.crop_padding, dataset.info.image_shape)
    check_guide(config, dataset.info.image_shape)
    check_sizes(config.evaluation, dataset.info)
    check_extractors(config.evaluation)
    check_published(config.evaluation, dataset.info)


def _check_crop(padding: int, image_shape: tuple[int, int, int]) -> None:
    smallest = min(image_shape[1:])
    if padding >= smallest:
        raise InputError(
            f"training.augment.crop_padding = {padding}: the images are {image_shape[1]} x {image_shape[2]}; allowed: "
            f"0 to {smallest - 1}, since the padding is the image reflected"
        )


def check_guide(config: RunConfig, image_shape: tuple[int, int, int]) -> None:
    """Refuse a guide that is no package or of another kind than the model will be: evaluation would find out last.

    Raises:
        InputError: naming the setting.
    """
    from diffusion.package import load_package
    from diffusion.process.sde import make_process
    from diffusion.solvers import autoguided

    guidance, objective = config.evaluation.guidance, config.objective
    if not isinstance(guidance, Autoguidance):
        return
    try:
        guide, package = load_package(Path(guidance.guide))
        model = replace(
            guide,  # whose network stands in for one that is not trained yet
            process=make_process(config.process),
            prediction=objective.prediction,
            sigma_data=objective.sigma_data,
            null_label=config.network.classes or None,
        )
        autoguided(model, guide, guidance.scale)
    except ValueError as error:
        raise InputError(f"evaluation.guidance.guide: {str(error).removeprefix('guidance.guide: ')}") from None
    if package.image_shape != image_shape:
        raise InputError(
            f"evaluation.guidance.guide: makes images of {package.image_shape}; allowed: a guide for those of "
            f"data.source = {config.data.source!r}, {image_shape}"
        )
