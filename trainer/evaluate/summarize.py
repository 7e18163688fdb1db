"""From an evaluation's files to the sample view: scores, and the pictures that go with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion.config import evaluations
from diffusion.images import grid
from diffusion.package import load_package, verify_package
from trainer.config.evaluation import EvaluationConfig
from trainer.data.dataset import Dataset
from trainer.evaluate.blocks import blocks_of, sample_sets
from trainer.evaluate.extractors.base import FeatureExtractor, frechet_name
from trainer.evaluate.extractors.classifier import Extractor
from trainer.evaluate.extractors.dimensions import extractors_of
from trainer.evaluate.extractors.load import extractors_to_load
from trainer.evaluate.likelihood.scores import likelihood_view
from trainer.evaluate.metrics.frechet_infinity import extrapolate
from trainer.evaluate.metrics.sample_scores import (
    Compared,
    coverage_scores,
    frechet_scores,
    kernel_scores,
    memorisation_scores,
    neighbour_scores,
    pairs_with_nearest,
)
from trainer.evaluate.references.baselines import reference_sets
from trainer.evaluate.references.cache import ReferenceCache
from trainer.evaluate.results import Found

GRID_IMAGES, PAIRS = 64, 12
NO_CLASSES = "the data have no classes for a classifier to learn, so it is left out; evaluation.extractors names others"


def both_views(
    config: EvaluationConfig, data: Dataset, package: Path, blocks: Path, references: Path, results: Path
) -> dict[str, Any]:
    """Metrics by the names of the house, and what they were measured with; writes to `results`.

    Args:
        config: what was measured.
        data: of which images.
        package: of which model.
        blocks: the folder that holds all blocks.
        references: the folder that holds classifiers and references.
        results: for pictures, and for values an image.
    """
    found = Found(blocks, blocks_of(config, data.info.heldout), config)
    denoiser, _ = load_package(package)
    values = likelihood_view(found, denoiser.process, data, results, verify_package(package))
    if config.samples_images:
        values |= sample_view(found, extractors_to_load(config, data, references), data, references, results)
    return values


def sample_view(
    found: Found, extractors: Sequence[FeatureExtractor], data: Dataset, references: Path, results: Path
) -> dict[str, Any]:
    """Scores of the samples; writes samples.npy, samples.png and neighbours.png.

    Args:
        found: with all features there.
        extractors: those that are compared by, and `pixels`.
        data: what samples are compared with.
        references: where its features are kept.
        results: the folder to write to.
    """
    config = found.config
    sets = [each for each in sample_sets(config) if not each.nfe]
    samples = found.samples(sets[0])
    np.save(results / "samples.npy", samples[..., 0] if samples.shape[-1] == 1 else samples)
    Image.fromarray(grid(samples[:GRID_IMAGES])).save(results / "samples.png")
    wanted = extractors_of(config, data.info.classes)
    values: dict[str, Any] = {"samples": config.samples, "extractors": {}, "frechet_at_nfe": {}}
    notes = [NO_CLASSES] if len(wanted) < len(config.extractors) else []
    cache = ReferenceCache(references)
    for extractor in extractors:
        scored = extractor.name in wanted
        compared = Compared(
            extractor,
            [found.features(each, extractor) for each in (sets if scored else sets[:1])],
            {name: cache.get(data, which, extractor) for name, which in reference_sets(config).items()},
        )
        if scored:
            values["extractors"][extractor.name] = {"sha256": extractor.sha256}
            values |= _distances(compared, config)
            if extractor.name == wanted[0] and "precision_recall" in config.metrics:
                values |= neighbour_scores(compared)
            if "frechet" in config.metrics and config.nfe_curve:
                values["frechet_at_nfe"][frechet_name(extractor)] = _curve(found, compared)
        if isinstance(extractor, Extractor):
            scores, counts = coverage_scores(compared, extractor)
            accuracy = extractor.accuracy(data.images("heldout")[:], data.labels("heldout"))
            values["extractors"][extractor.name] |= {"heldout_accuracy": accuracy}
            values |= scores | {"classes": counts}
        if extractor.name == "pixels":
            values |= _memorisation(compared, data, samples, results, notes)
    return values | ({"notes": notes} if notes else {})


def _distances(compared: Compared, config: EvaluationConfig) -> dict[str, float]:
    scores = frechet_scores(compared, config.seed) if "frechet" in config.metrics else {}
    return scores | (kernel_scores(compared, config.seed) if "kid" in config.metrics else {})


def _curve(found: Found, compared: Compared) -> list[dict[str, float]]:
    """The Frechet distance at each number of network evaluations, that of the solver as it is configured included."""
    config, points = found.config, dict[int, dict[str, float]]()
    for each in sample_sets(config):
        nfe = each.nfe or evaluations(config.solver)
        if nfe is not None and each.seed == config.seed:
            at = extrapolate(found.features(each, compared.extractor), compared.gaussian, config.seed, parts=1)
            error = {} if at.distance_se is None else {"se": at.distance_se}
            points[nfe] = {"nfe": nfe, "value": at.distance, **error}
    return [points[nfe] for nfe in sorted(points)]


def _memorisation(
    compared: Compared, data: Dataset, samples: NDArray[np.uint8], results: Path, notes: list[str]
) -> dict[str, float]:
    try:
        scores, nearest = memorisation_scores(compared)
    except ValueError as error:
        notes.append(f"no memorisation check: {error}")
        return {}
    train = data.images("train")
    pairs = pairs_with_nearest(samples, nearest, compared.train, lambda rows: train[rows], PAIRS)
    Image.fromarray(grid(pairs, columns=len(pairs) // 2)).save(results / "neighbours.png")
    return scores
