"""Computes the scores of both views from the files of an evaluation, and writes the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion.config import evaluations
from diffusion.images import grid
from diffusion.likelihood.continuous import log_snr_ends
from diffusion.package import load_package, verify_package
from diffusion.process.sde import Process
from trainer.config.evaluation import EvaluationConfig
from trainer.config.run_config import canonical
from trainer.data.dataset import Dataset
from trainer.evaluate.blocks import blocks_of, sample_sets
from trainer.evaluate.extractors.base import FeatureExtractor, frechet_name
from trainer.evaluate.extractors.classifier import ClassifierExtractor
from trainer.evaluate.extractors.dimensions import extractors_of, left_out
from trainer.evaluate.extractors.load import extractors_to_load
from trainer.evaluate.likelihood.scores import likelihood_view
from trainer.evaluate.metrics.frechet_infinity import extrapolate
from trainer.evaluate.metrics.sample_scores import (
    FeatureComparison,
    coverage_scores,
    frechet_scores,
    kernel_scores,
    memorisation_scores,
    neighbour_scores,
    pairs_with_nearest,
)
from trainer.evaluate.references.baselines import BASELINES, reference_sets
from trainer.evaluate.references.cache import ReferenceCache
from trainer.evaluate.references.published import Published, load_published, owner
from trainer.evaluate.results import EvaluationResults
from trainer.run.summary import ClassCounts, CurvePoint, Evaluated, ExtractorUsed, Protocol, Score

GRID_IMAGES, NEIGHBOUR_PAIRS = 64, 12


def both_views(
    config: EvaluationConfig, data: Dataset, package: Path, blocks: Path, references: Path, folder: Path
) -> Evaluated:
    """The scores of both views of a model, from stored blocks.

    Args:
        config: settings of the evaluation.
        data: the data set.
        package: folder of the model's package.
        blocks: folder of the blocks.
        references: folder of classifiers and reference features.
        folder: pictures and the likelihoods of each image are written to it.
    """
    results = EvaluationResults(blocks, blocks_of(config, data.info.heldout), config)
    process = load_package(package)[0].process
    scores = likelihood_view(results, process, data, folder, verify_package(package))
    likelihoods = {name: replace(score, protocol=likelihood_protocol(name, process)) for name, score in scores.items()}
    if not config.samples_images:
        return Evaluated(likelihoods)
    sampled = sample_view(results, extractors_to_load(config, data, references), data, references, folder)
    return replace(sampled, scores={**likelihoods, **sampled.scores})


def likelihood_protocol(name: str, process: Process) -> Protocol:
    """How a likelihood is measured: the continuous bound and the ODE integrate between two log-SNRs."""
    continuous = name.startswith(("continuous_vlb", "nll"))
    return Protocol(log_snr_ends=log_snr_ends(process) if continuous else None)


def sample_protocol(name: str, config: EvaluationConfig, extractors: Mapping[str, ExtractorUsed]) -> Protocol:
    """How a score of samples is measured; one whose name has no extractor, such as precision, lists all."""
    owner = "inception" if name.startswith("fid") else name
    used = {each: value.sha256 for each, value in extractors.items() if each in owner}
    return Protocol(
        samples=config.samples,
        sampler=canonical(config.solver.model_dump(mode="json")),
        extractors=used or {each: value.sha256 for each, value in extractors.items()},
    )


def sample_view(
    results: EvaluationResults, extractors: Sequence[FeatureExtractor], data: Dataset, references: Path, folder: Path
) -> Evaluated:
    """Scores of the samples; writes samples.npy, samples.png and neighbours.png.

    Args:
        results: the stored blocks, with those of all features.
        extractors: those of the evaluation, and `pixels`.
        data: the images that samples are compared with.
        references: folder of reference features.
        folder: the files are written to it.
    """
    config, view = results.config, _SampleView()
    sets = [each for each in sample_sets(config) if not each.nfe]
    samples = results.samples(sets[0])
    np.save(folder / "samples.npy", samples[..., 0] if samples.shape[-1] == 1 else samples)
    Image.fromarray(grid(samples[:GRID_IMAGES])).save(folder / "samples.png")
    scoring = extractors_of(config, data.info.classes)
    if note := left_out(config, data.info.classes):
        view.notes.append(note)
    cache = ReferenceCache(references)
    published = load_published(Path(config.reference)) if config.reference and "frechet" in config.metrics else None
    theirs = owner(config, data.info, published.dimensions) if published else None
    for extractor in extractors:
        scored = extractor.name in scoring
        comparison = FeatureComparison(
            extractor,
            [results.features(each, extractor) for each in (sets if scored else sets[:1])],
            {name: cache.get(data, which, extractor) for name, which in reference_sets(config).items()},
            published.reference if published and extractor.name == theirs else None,
        )
        if published and extractor.name == theirs:
            view.add_published(published, frechet_name(extractor))
        if scored:
            view.add_distances(results, comparison, with_neighbours=extractor.name == scoring[0])
        if isinstance(extractor, ClassifierExtractor):
            view.add_classes(comparison, extractor, data)
        if extractor.name == "pixels":
            view.add_memorisation(comparison, data, samples, folder)
    return view.evaluated(config)


@dataclass
class _SampleView:
    """Collects the scores of the sample view, one extractor after another."""

    scores: dict[str, Score] = field(default_factory=dict[str, Score])
    extractors: dict[str, ExtractorUsed] = field(default_factory=dict[str, ExtractorUsed])
    curves: dict[str, tuple[CurvePoint, ...]] = field(default_factory=dict[str, tuple[CurvePoint, ...]])
    classes: ClassCounts | None = None
    notes: list[str] = field(default_factory=list[str])
    published: dict[str, str] = field(default_factory=dict[str, str])

    def add_distances(self, results: EvaluationResults, comparison: FeatureComparison, with_neighbours: bool) -> None:
        """Distances to the training images by one extractor."""
        config, extractor = results.config, comparison.extractor
        self.extractors[extractor.name] = ExtractorUsed(extractor.sha256)
        if "frechet" in config.metrics:
            self.scores |= frechet_scores(comparison, config.seed)
        if "kid" in config.metrics:
            self.scores |= kernel_scores(comparison, config.seed)
        if with_neighbours and "precision_recall" in config.metrics:
            self.scores |= neighbour_scores(comparison)
        if "frechet" in config.metrics and config.nfe_curve:
            self.curves[frechet_name(extractor)] = _curve(results, comparison)

    def add_published(self, published: Published, name: str) -> None:
        """Say what a Frechet distance is to, and what is therefore left out."""
        self.published = dict.fromkeys((name, f"{name}_infinite"), published.sha256)
        yardsticks = [f"{name}_{baseline}" for baseline in BASELINES]
        self.notes.append(
            f"{name} is to published statistics ({published.sha256[:8]}), so {', '.join(yardsticks[:-1])} and "
            f"{yardsticks[-1]}, which are of this data set, are left out"
        )

    def add_classes(self, comparison: FeatureComparison, classifier: ClassifierExtractor, data: Dataset) -> None:
        """Class coverage of the samples, and the classifier's accuracy on held-out images."""
        scores, self.classes = coverage_scores(comparison, classifier)
        self.scores |= scores
        accuracy = classifier.accuracy(data.images("heldout")[:], data.labels("heldout"))
        self.extractors[classifier.name] = ExtractorUsed(classifier.sha256, accuracy)

    def add_memorisation(
        self, comparison: FeatureComparison, data: Dataset, samples: NDArray[np.uint8], folder: Path
    ) -> None:
        """How near samples are to training images, in pixels; writes neighbours.png."""
        try:
            scores, nearest = memorisation_scores(comparison)
        except ValueError as error:
            self.notes.append(f"no memorisation check: {error}")
            return
        self.scores |= scores
        train = data.images("train")
        pairs = pairs_with_nearest(samples, nearest, comparison.train, lambda rows: train[rows], NEIGHBOUR_PAIRS)
        Image.fromarray(grid(pairs, columns=len(pairs) // 2)).save(folder / "neighbours.png")

    def evaluated(self, config: EvaluationConfig) -> Evaluated:
        """All scores, each with the protocol by which it was measured."""
        scores = {
            name: replace(
                score,
                protocol=replace(sample_protocol(name, config, self.extractors), reference=self.published.get(name)),
            )
            for name, score in self.scores.items()
        }
        return Evaluated(scores, config.samples, self.extractors, self.curves, self.classes, tuple(self.notes))


def _curve(results: EvaluationResults, comparison: FeatureComparison) -> tuple[CurvePoint, ...]:
    """The Frechet distance at each number of network evaluations, including that of the configured solver."""
    config, points = results.config, dict[int, CurvePoint]()
    for each in sample_sets(config):
        nfe = each.nfe or evaluations(config.solver)
        if nfe is not None and each.seed == config.seed:
            at = extrapolate(results.features(each, comparison.extractor), comparison.gaussian, config.seed, parts=1)
            points[nfe] = CurvePoint(nfe, at.distance, at.distance_se)
    return tuple(points[nfe] for nfe in sorted(points))
