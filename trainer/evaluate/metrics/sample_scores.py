"""The sample view of a model: what its samples are like, as numbers with errors and a scale to read them by.

Everything here is of features that blocks and references hold already. `_se` is the standard error of a value, from the
samples' side: over seeds where there are several, else of the one set. `_sd` is the spread of one seed's value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev

import numpy as np
import torch
from torch import Tensor

from diffusion.frechet import FrechetReference
from trainer.evaluate.extractors.base import FeatureExtractor, frechet_name
from trainer.evaluate.extractors.classifier import ClassifierExtractor
from trainer.evaluate.metrics.coverage import class_coverage
from trainer.evaluate.metrics.frechet_infinity import GROUPS, Extrapolation, extrapolate
from trainer.evaluate.metrics.kid import kernel_distance
from trainer.evaluate.metrics.neighbours import Memorisation, memorisation, precision_recall
from trainer.evaluate.metrics.sample_features import SampleFeatures
from trainer.evaluate.references.baselines import BASELINES, spread
from trainer.evaluate.references.cache import Reference
from trainer.run.summary import ClassCounts, Replicate, Score

MOST_NEIGHBOURS = 10_000  # images a side for precision and recall

Scores = dict[str, Score]


@dataclass(frozen=True)
class FeatureComparison:
    """Features of one extractor.

    Attributes:
        extractor: which.
        sets: of the samples, a set a seed, N in each.
        references: of `train` and of each baseline.
        published: what Frechet distances are to, instead of the training images; None without.
    """

    extractor: FeatureExtractor
    sets: Sequence[SampleFeatures]
    references: Mapping[str, Reference]
    published: FrechetReference | None = None

    @property
    def train(self) -> Reference:
        """Of the training images."""
        return self.references["train"]

    @cached_property
    def gaussian(self) -> FrechetReference:
        """What Frechet distances are to: that of the training images, unless another is published."""
        return self.published or FrechetReference.of(self.train.moments)


def aggregate_seeds(
    values: Sequence[float], errors: Sequence[float | None], replicate: Replicate, replicates: int
) -> Score:
    """A score over seeds: their mean and its standard error, which of one seed is that of the set of samples.

    Args:
        values: of each seed.
        errors: standard errors of each seed's value, None where it has none.
        replicate: what those errors come from.
        replicates: how many of them there were.
    """
    n = len(values)
    if n > 1:
        sd = stdev(values)
        return Score(fmean(values), sd / n**0.5, df=n - 1, n=n, replicate="seeds", sd=sd)
    if errors[0] is None:
        return Score(values[0])
    return Score(values[0], errors[0], df=replicates - 1, n=replicates, replicate=replicate)


def frechet_scores(comparison: FeatureComparison, seed: int) -> Scores:
    """The Frechet distance to the training images of the samples, also extrapolated, and of the baselines.

    To published statistics there are no baselines: ours are of other images. A baseline of no more images than there
    are features has no value; neither has an extrapolation from too few.
    """
    name, reference = frechet_name(comparison.extractor), comparison.gaussian
    found = [extrapolate(features, reference, seed) for features in comparison.sets]
    scores = {name: _over_blocks([each.distance for each in found], [each.distance_se for each in found])}
    scores |= _infinite(f"{name}_infinite", found)
    for baseline in BASELINES if comparison.published is None else ():
        moments = comparison.references[baseline].moments
        if moments.count > comparison.extractor.dimensions:
            scores[f"{name}_{baseline}"] = Score(reference.distance(moments))
    return scores


def _over_blocks(values: Sequence[float], errors: Sequence[float | None]) -> Score:
    return aggregate_seeds(values, errors, "blocks", GROUPS)


def _infinite(name: str, found: Sequence[Extrapolation]) -> Scores:
    values = [each.infinite for each in found if each.infinite is not None]
    return {name: _over_blocks(values, [each.infinite_se for each in found])} if len(values) == len(found) else {}


def kernel_scores(comparison: FeatureComparison, seed: int) -> Scores:
    """KID of the samples and of the baselines, each against the training images."""
    name, train = f"kid_{comparison.extractor.name}", comparison.train.features
    found = [kernel_distance(features.whole(), train, seed) for features in comparison.sets]
    values, errors = [each.value for each in found], [each.standard_error for each in found]
    scores = {name: aggregate_seeds(values, errors, "blocks", found[0].blocks)}
    for baseline in BASELINES:
        features = comparison.references[baseline].features
        if len(features) >= comparison.sets[0].count // 2:
            scores[f"{name}_{baseline}"] = Score(kernel_distance(features, train, seed).value)
    return scores


def neighbour_scores(comparison: FeatureComparison) -> Scores:
    """Precision and recall of the samples against as many training images, and of the held-out ones likewise."""
    train = comparison.train.features

    def of(features: Tensor) -> tuple[float, float]:
        most = min(len(features), len(train), MOST_NEIGHBOURS)
        real, drawn = (each[torch.from_numpy(spread(len(each), most))] for each in (train, features))
        found = precision_recall(real, drawn)
        return found.precision, found.recall

    count = min(comparison.sets[0].count, len(train), MOST_NEIGHBOURS)
    pairs = [of(features.whole()) for features in comparison.sets]
    scores: Scores = {}
    real = of(comparison.references["heldout"].features)
    for name, values, baseline in zip(("precision", "recall"), zip(*pairs, strict=True), real, strict=True):
        binomial = (values[0] * (1 - values[0]) / count) ** 0.5
        scores |= {name: aggregate_seeds(values, [binomial], "images", count), f"{name}_heldout": Score(baseline)}
    return scores


def coverage_scores(comparison: FeatureComparison, classifier: ClassifierExtractor) -> tuple[Scores, ClassCounts]:
    """How far the samples' classes are from the training images' in total variation, and how many are missing.

    Returns:
        The scores, and the counts by class of samples, of training and of held-out images.
    """
    seen = {name: classifier.predicted(comparison.references[name].features) for name in ("train", "heldout")}
    predicted = (classifier.predicted(each.whole()) for each in comparison.sets)
    found = [class_coverage(classes, seen["train"], classifier.classes) for classes in predicted]
    real = class_coverage(seen["heldout"], seen["train"], classifier.classes)
    scores = {
        "class_variation": _over_blocks([each.total_variation for each in found], [None]),
        "class_variation_heldout": Score(real.total_variation),
        "classes_missing": Score(fmean(each.missing for each in found)),
    }
    return scores, ClassCounts(tuple(found[0].samples), tuple(real.data), tuple(real.samples))


def memorisation_scores(comparison: FeatureComparison) -> tuple[Scores, Memorisation]:
    """How much nearer samples are to training images than held-out images are, in pixels; of the first seed.

    Raises:
        ValueError: most held-out images are training images too.
    """
    found = memorisation(
        comparison.train.features, comparison.references["heldout"].features, comparison.sets[0].whole()
    )
    ratio, closer = Score(found.median_ratio), Score(found.closer_fraction)
    return {"memorisation_ratio": ratio, "memorisation_closer": closer}, found


def pairs_with_nearest(
    samples: np.ndarray,
    found: Memorisation,
    reference: Reference,
    train: Callable[[np.ndarray], np.ndarray],
    count: int,
) -> np.ndarray:
    """Samples from the nearest to a training image to the farthest, and below each that image: uint8 [2 n, H, W, C]."""
    order = np.argsort(found.distances, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    return np.concatenate([samples[chosen], train(reference.rows[found.nearest[chosen]])])
