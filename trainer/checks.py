"""What is refused before any worker starts, once there is data to look at: each check says what is allowed."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from diffusion.config import Autoguidance
from trainer.config import EvaluationConfig, RunConfig
from trainer.data.dataset import Dataset
from trainer.evaluate.sizes import check_sizes
from trainer.settings import InputError

CONNECT_TIMEOUT_S = 10.0


def check_data(config: RunConfig, dataset: Dataset) -> None:
    """Refuse a network or an evaluation that does not fit the data, and a schedule that cannot be computed.

    Raises:
        InputError: naming the setting.
    """
    from diffusion.sde import make_process

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


def check_extractors(config: EvaluationConfig) -> None:
    """Refuse weights of extractors that are not there or not what they say: the end of an evaluation would find out.

    Raises:
        InputError: naming the setting.
    """
    if config.samples_images and "efficientnet_lite0" in config.extractors:
        from trainer.evaluate.efficientnet import load_efficientnet

        _loads("evaluation.extractors", load_efficientnet)
    if config.samples_images and config.inception_file is not None:
        from trainer.evaluate.inception import load_inception

        _loads("evaluation.inception_file", load_inception, Path(config.inception_file), config.inception_sha256)


def _loads(setting: str, load: Callable[..., object], *arguments: object) -> None:
    try:
        load(*arguments)
    except ValueError as error:
        raise InputError(f"{setting}: {error}") from None


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
    from diffusion.sde import make_process
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


def check_ray_address() -> None:
    """Knock at RAY_ADDRESS: ray.init would do so at a dead address for minutes.

    Raises:
        InputError: nothing answers there.
    """
    host, separator, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
    if separator and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise InputError(
                f"RAY_ADDRESS = {host}:{port}: no Ray cluster answers: {error}; allowed: the address of a running "
                "cluster, or none to start a local one"
            ) from None
