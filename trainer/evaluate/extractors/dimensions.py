"""Sizes of features, which the command line checks before torch is loaded."""

from math import ceil, prod

from trainer.config.evaluation import SAMPLED, EvaluationConfig, ExtractorName
from trainer.data.manifest import DatasetInfo
from trainer.errors import InputError

FEATURES = 64
"""Dimensions of the classifier's features."""

DIMENSIONS = {"classifier": FEATURES, "efficientnet_lite0": 1280, "inception": 2048}
MAX_PIXEL_FEATURES = 1024
MAX_SAMPLE_BYTES = 2**34
"""Of a set of samples and their features, where somebody else says how many there are."""
LEAST_SAMPLES = {"kid": 20, "precision_recall": 4}
LEAST_HELDOUT = 48  # six offsets of log-SNR for each of eight groups of images


def pixel_grid(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of the smallest squares' means that leave at most MAX_PIXEL_FEATURES of (C, H, W)."""
    channels, height, width = image_shape
    side = 1
    while channels * ceil(height / side) * ceil(width / side) > MAX_PIXEL_FEATURES:
        side += 1
    return ceil(height / side), ceil(width / side)


def dimensions(extractor: ExtractorName, image_shape: tuple[int, int, int]) -> int:
    """How many features an extractor has of images (C, H, W)."""
    if extractor == "pixels":
        rows, columns = pixel_grid(image_shape)
        return image_shape[0] * rows * columns
    return DIMENSIONS[extractor]


def extractors_of(config: EvaluationConfig, classes: int) -> tuple[ExtractorName, ...]:
    """Those that the data allow: a classifier needs classes to tell apart."""
    return tuple(name for name in config.extractors if name != "classifier" or classes > 1)


def left_out(config: EvaluationConfig, classes: int) -> str | None:
    """What is not measured since the data have too few classes for a classifier; None if nothing is left out."""
    used = extractors_of(config, classes)
    if used == config.extractors or not config.samples_images:
        return None
    have = "have one class" if classes else "have no classes"
    metrics = [name for name in config.metrics if name in SAMPLED]
    without = "" if used or not metrics else f", and no {' and no '.join(metrics)} without it"
    return (
        f"the data {have}, so there is no classifier to compare samples by{without}; evaluation.extractors names others"
    )


def check_sizes(config: EvaluationConfig, info: DatasetInfo) -> None:
    """Refuse sets of images that are too small for what is to be measured of them.

    Raises:
        InputError: naming the set, what needs more, and the least number.
    """
    for metric, least in LEAST_SAMPLES.items():
        if metric in config.metrics and min(config.samples, info.train, info.heldout) < least:
            raise InputError(
                f"evaluation.metrics = {metric}: {config.samples} samples, {info.train} training and {info.heldout} "
                f"held-out images; allowed: at least {least} of each"
            )
    if "denoising" in config.metrics and info.heldout < LEAST_HELDOUT:
        raise InputError(
            f"evaluation.metrics = denoising: {info.heldout} held-out images; allowed: at least {LEAST_HELDOUT}"
        )
    if "frechet" not in config.metrics:
        return
    for extractor in extractors_of(config, info.classes):
        least = dimensions(extractor, info.image_shape) + 1
        problem = f"the covariance of the {least - 1} features of {extractor} is singular with fewer than {least}"
        if config.samples < least:
            raise InputError(f"evaluation.samples = {config.samples}: {problem}; allowed: at least {least}")
        if info.train < least:
            raise InputError(
                f"data.source = {info.source!r}: {info.train} training images, and {problem}; allowed: more images, or "
                "another of evaluation.extractors, or metrics without frechet"
            )


def check_sample_memory(config: EvaluationConfig, info: DatasetInfo) -> None:
    """Refuse more samples than memory is taken for at somebody else's word; features are float32.

    Raises:
        InputError: naming the number of samples, and the most.
    """
    features = max(dimensions(name, info.image_shape) for name in (*extractors_of(config, info.classes), "pixels"))
    most = MAX_SAMPLE_BYTES // (prod(info.image_shape) + 4 * features)
    if config.samples_images and config.samples > most:
        raise InputError(
            f"evaluation.samples = {config.samples}: take more than {MAX_SAMPLE_BYTES >> 30} GiB with their features; "
            f"allowed: at most {most}, or --samples of your own"
        )
