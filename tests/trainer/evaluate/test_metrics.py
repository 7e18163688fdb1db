"""Scores of samples against exact answers, other implementations and constructed sets."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from diffusion.frechet import FrechetReference, Moments, frechet_distance
from diffusion.rng import Stream, counter_generator
from trainer.evaluate.metrics.coverage import class_coverage
from trainer.evaluate.metrics.frechet_infinity import extrapolate, minimum_samples
from trainer.evaluate.metrics.kid import kernel_distance, mmd2
from trainer.evaluate.metrics.neighbours import memorisation, precision_recall
from trainer.evaluate.metrics.sample_features import SampleFeatures
from trainer.evaluate.metrics.sample_scores import (
    FeatureComparison,
    aggregate_seeds,
    frechet_scores,
    kernel_scores,
    neighbour_scores,
)
from trainer.evaluate.references.cache import Reference
from trainer.run.summary import Score


def normal(count: int, dimensions: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn((count, dimensions), generator=generator, dtype=torch.float64)


def in_blocks(features: Tensor, size: int = 77) -> SampleFeatures:
    return SampleFeatures(len(features), lambda: features.split(size))


def mixed(count: int, dimensions: int, seed: int) -> Tensor:
    """Correlated features with a spectrum, as networks give them."""
    mixing = normal(dimensions, dimensions, 99) * torch.logspace(0, -3, dimensions, dtype=torch.float64)
    return normal(count, dimensions, seed) @ mixing.T + 3


def test_gaussians_have_their_known_distance():
    """||m||^2 + sum (s_a - s_b)^2 for diagonal covariances, from moments that are exactly theirs."""
    axes = torch.eye(4, dtype=torch.float64)
    means = torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)
    stds = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)

    def exact(mean: Tensor, std: Tensor) -> Moments:
        corners = torch.cat([axes, -axes]) * std * (7 / 2) ** 0.5  # unbiased covariance of 8 points: std^2
        return Moments.of(corners + mean)

    found = frechet_distance(exact(torch.zeros(4), torch.ones(4)), exact(means, stds))
    assert found == pytest.approx(float((means**2).sum() + ((stds - 1) ** 2).sum()), rel=1e-12)


@pytest.mark.parametrize(("count", "dimensions"), [(300, 10), (900, 64)])
def test_the_distance_is_that_of_scipys_matrix_root_and_of_torchmetrics(count, dimensions):
    a, b = mixed(count, dimensions, 0), mixed(count // 2, dimensions, 1) * 1.1 + 0.1
    found = frechet_distance(Moments.of(a), Moments.of(b))
    sigma = [np.cov(features.numpy(), rowvar=False) for features in (a, b)]
    root = np.real(scipy.linalg.sqrtm(sigma[0] @ sigma[1]))
    shift = (a.mean(0) - b.mean(0)).square().sum()
    expected = float(shift + np.trace(sigma[0] + sigma[1] - 2 * root))
    assert found == pytest.approx(expected, rel=1e-6)
    assert found == pytest.approx(torchmetrics_distance(a, b), rel=1e-6)


class Flat(torch.nn.Module):
    num_features = 0

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def torchmetrics_distance(a: Tensor, b: Tensor) -> float:
    network = Flat()
    network.num_features = a.shape[1]
    metric = FrechetInceptionDistance(feature=network, input_img_size=(1, 1, a.shape[1])).set_dtype(torch.float64)
    metric.update(a[:, None, None], real=True)
    metric.update(b[:, None, None], real=False)
    return float(metric.compute())


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 6), st.integers(0, 100))
def test_a_reference_is_used_again_for_the_same_distance(dimensions, seed):
    a, b = (Moments.of(normal(40, dimensions, seed + each)) for each in (0, 1))
    assert FrechetReference.of(a).distance(b) == frechet_distance(a, b)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9, abs=1e-9)


def test_parts_of_a_set_add_up_to_its_moments():
    features = normal(1000, 16, 0)
    whole, summed = Moments.of(features), Moments.none(16)
    for part in features.split(77):
        summed += Moments.of(part)
    reference = Moments.of(normal(500, 16, 1, mean=0.2))
    assert summed.count == 1000
    assert frechet_distance(summed, reference) == pytest.approx(frechet_distance(whole, reference), rel=1e-12)


def test_extrapolation_takes_the_bias_away():
    """Samples of the very distribution are at distance 0; N of them are at about d (d + 1) / (4 N) and more."""
    reference = FrechetReference.of(Moments.of(normal(200_000, 12, 1)))
    found = [extrapolate(in_blocks(normal(500, 12, 100 + seed)), reference, 0) for seed in range(12)]
    plain = np.mean([each.distance for each in found])
    infinite = np.array([each.infinite for each in found], dtype=float)
    assert plain > 0.08
    assert abs(infinite.mean()) < 3 * infinite.std(ddof=1) / 12**0.5 + 0.004
    assert abs(infinite.mean()) < plain / 10


def test_an_extrapolation_is_the_line_through_its_parts_done_by_hand():
    """Each part's distance from its own features, and the jackknife's from those that are left, of 2,203 in blocks."""
    features, reference = normal(2203, 6, 3, mean=0.1), FrechetReference.of(Moments.of(normal(900, 6, 1)))
    order = counter_generator(5, Stream.SCORE_SUBSETS).permutation(2203)

    def line(without: int | None) -> list[tuple[float, float]]:
        points = list[tuple[float, float]]()
        for parts in range(1, 5):
            size = 2203 // parts
            chosen = [
                [order[place] for place in range(part * size, (part + 1) * size) if place % 10 != without]
                for part in range(parts)
            ]
            distances = [reference.distance(Moments.of(features[rows])) for rows in chosen]
            points.append((fmean(1 / len(rows) for rows in chosen), fmean(distances)))
        return points

    def intercept(points: list[tuple[float, float]]) -> float:
        return float(np.polyfit([x for x, _ in points], [y for _, y in points], 1)[1])

    found = extrapolate(in_blocks(features), reference, 5)
    assert found.distance == pytest.approx(line(None)[0][1], rel=1e-10)
    assert found.infinite == pytest.approx(intercept(line(None)), rel=1e-9)
    left_out = [line(group) for group in range(10)]
    for error, values in (
        (found.distance_se, [points[0][1] for points in left_out]),
        (found.infinite_se, [intercept(points) for points in left_out]),
    ):
        assert error == pytest.approx(9 / 10**0.5 * np.std(values, ddof=1), rel=1e-8)
    assert extrapolate(in_blocks(features, 1000), reference, 5).infinite == pytest.approx(found.infinite, rel=1e-10)


def test_moments_never_hold_more_than_a_chunk_of_the_features():
    alive, most = set[int](), 0

    def blocks() -> Iterator[Tensor]:
        nonlocal most
        for number in range(200):
            block = normal(128, 4, number)
            alive.add(number)
            weakref.finalize(block, alive.discard, number)
            most = max(most, len(alive))
            yield block

    group = torch.arange(200 * 128) % 3 - 1
    found = SampleFeatures(200 * 128, blocks).moments(group, 2, 4)
    assert most <= 1024 // 128 + 1
    everything = torch.cat([normal(128, 4, number) for number in range(200)])
    for which, moments in enumerate(found):
        expected = Moments.of(everything[group == which])
        assert moments.count == expected.count
        torch.testing.assert_close(moments.outer, expected.outer, rtol=1e-12, atol=0)


def test_standard_errors_are_the_spread_over_sets():
    reference = FrechetReference.of(Moments.of(normal(100_000, 8, 1)))
    sets = [normal(400, 8, 200 + seed, mean=0.3, scale=1.2) for seed in range(40)]
    found = [extrapolate(in_blocks(features), reference, 0) for features in sets]
    for value, error in (("distance", "distance_se"), ("infinite", "infinite_se")):
        spread = np.std([getattr(each, value) for each in found], ddof=1)
        stated = np.mean([getattr(each, error) for each in found])
        assert stated == pytest.approx(spread, rel=0.45)  # the spread is that of 40


def test_few_samples_have_a_distance_fewer_errors_and_no_extrapolation():
    reference = FrechetReference.of(Moments.of(normal(1000, 8, 1)))
    assert minimum_samples(8, 1) == 10
    assert minimum_samples(8) == 40
    assert extrapolate(in_blocks(normal(9, 8, 2)), reference, 0).distance_se is None
    some = extrapolate(in_blocks(normal(39, 8, 2)), reference, 0)
    assert some.distance_se is not None
    assert some.infinite is None
    whole, alone = (extrapolate(in_blocks(normal(40, 8, 2)), reference, 0, parts) for parts in (4, 1))
    assert whole.infinite is not None
    assert alone.infinite is None
    assert (whole.distance, whole.distance_se) == (alone.distance, alone.distance_se)
    with pytest.raises(ValueError, match="8 samples for 8 feature dimensions; at least 9 are needed"):
        extrapolate(in_blocks(normal(8, 8, 2)), reference, 0)


def test_mmd_is_the_mean_over_all_pairs():
    x, y = normal(7, 3, 0), normal(5, 3, 1, mean=0.5)

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_x = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([k(a, b) for a in x for b in y])
    assert mmd2(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_kid_is_unbiased_with_the_error_it_states():
    """Of alike sets: 0 on average, and as far from it as its standard errors say; of unlike ones: the exact value."""
    found = [kernel_distance(normal(200, 4, seed), normal(300, 4, 1000 + seed), 0) for seed in range(60)]
    pulls = np.array([each.value / each.standard_error for each in found])
    assert abs(pulls.mean()) < 0.5
    assert 0.7 < pulls.std() < 1.5
    shift = 0.8  # x ~ N(0, 1), y ~ N(shift, 1) in one dimension: E (x x' + 1)^3 in closed form
    unlike = kernel_distance(normal(20_000, 1, 0), normal(20_000, 1, 1, mean=shift), 0)
    second, third = 1 + shift**2, shift**3 + 3 * shift
    within_x, between = 1 + 3, 1 + 3 * second
    within_y = 1 + 3 * shift**2 + 3 * second**2 + third**2
    assert unlike.value == pytest.approx(within_x + within_y - 2 * between, abs=4 * unlike.standard_error)


def test_kid_blocks_share_nothing_and_small_sets_are_refused():
    with pytest.raises(ValueError, match="at least 20 are needed"):
        kernel_distance(normal(19, 2, 0), normal(50, 2, 1), 0)
    assert kernel_distance(normal(20, 2, 0), normal(50, 2, 1), 0) == kernel_distance(
        normal(20, 2, 0), normal(50, 2, 1), 0
    )


def test_precision_and_recall_of_constructed_sets():
    """Two clusters: samples in one of them are all real, and half of what is real is missed."""
    left, right = normal(50, 2, 0, scale=0.1), normal(50, 2, 1, mean=10, scale=0.1)
    real = torch.cat([left, right])
    same = precision_recall(real, real.clone())
    assert (same.precision, same.recall) == (1, 1)
    half = precision_recall(real, torch.cat([left, left + 1e-6]))
    assert (half.precision, half.recall) == (1, 0.5)
    far = precision_recall(real, normal(60, 2, 2, mean=-100))
    assert (far.precision, far.recall) == (0, 0)
    mostly = precision_recall(left, torch.cat([left[:30], normal(10, 2, 3, mean=50, scale=0.01)]))
    assert mostly.precision == 0.75
    with pytest.raises(ValueError, match="3 samples have no 3th neighbour; at least 4"):
        precision_recall(real, left[:3])


def test_neighbours_by_hand_in_one_dimension():
    """Balls of the first neighbour: around 0, 1, 3 with radii 1, 1, 2."""
    real, samples = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[-0.9], [-1.1], [4.9], [5.1]])
    assert precision_recall(real, samples, k=1).precision == 0.5


def test_copies_of_training_images_are_found():
    train, heldout = normal(400, 6, 0), normal(100, 6, 1)
    honest = memorisation(train, heldout, normal(300, 6, 2))
    assert honest.median_ratio == pytest.approx(1, abs=0.15)
    assert honest.closer_fraction < 0.06
    copied = memorisation(train, heldout, torch.cat([train[10:30] + 1e-9, normal(80, 6, 3)]))
    assert copied.closer_fraction >= 0.2
    assert list(copied.nearest[:20]) == list(range(10, 30))
    assert memorisation(train, heldout, train[5:6]).median_ratio < 1e-6
    with pytest.raises(ValueError, match="training images too"):
        memorisation(train, train[:50], heldout)
    with pytest.raises(ValueError, match="no held-out images"):
        memorisation(train, train[:0], heldout)


def test_coverage_counts_what_is_missing():
    found = class_coverage(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2, 1, 0]), 4)
    assert found.missing == 1
    assert found.total_variation == pytest.approx(1 / 3)
    assert found.samples == (2, 2, 0, 0)
    with pytest.raises(ValueError, match="0 samples"):
        class_coverage(np.array([], int), np.array([1]), 4)


def test_several_seeds_have_a_spread_and_one_has_its_own_error():
    several = Score(2.0, se=1.0, df=1, n=2, replicate="seeds", sd=2**0.5)
    assert aggregate_seeds([1.0, 3.0], [None, None], "blocks", 10) == several
    assert aggregate_seeds([1.0], [0.2], "blocks", 10) == Score(1.0, 0.2, df=9, n=10, replicate="blocks")
    assert aggregate_seeds([1.0], [None], "blocks", 10) == Score(1.0)


@dataclass(frozen=True)
class Named:
    name: str = "pixels"
    sha256: str = "0" * 64
    dimensions: int = 5

    def features(self, pixels: np.ndarray) -> Tensor:
        raise NotImplementedError


def reference(features: Tensor) -> Reference:
    return Reference(Moments.of(features), features.float(), np.arange(len(features)))


@pytest.fixture
def comparison():
    references = {
        "train": reference(mixed(400, 5, 0)),
        "heldout": reference(mixed(100, 5, 1)),
        "gaussian": reference(mixed(200, 5, 2) + 1),
        "noise": reference(mixed(200, 5, 3) * 5),
    }
    return FeatureComparison(Named(), [in_blocks(mixed(200, 5, seed).float()) for seed in (4, 5)], references)


def test_scores_stand_on_their_scale(comparison):
    for scores, name in (
        (frechet_scores(comparison, 0), "frechet_pixels"),
        (kernel_scores(comparison, 0), "kid_pixels"),
    ):
        gaussian = scores[f"{name}_gaussian"].value
        assert abs(scores[name].value) < gaussian < scores[f"{name}_noise"].value
        assert abs(scores[f"{name}_heldout"].value) < gaussian
        se, sd = scores[name].se, scores[name].sd
        assert se == pytest.approx((sd or 0) / 2**0.5)
        assert (scores[name].replicate, scores[name].n, scores[name].df) == ("seeds", 2, 1)
    assert frechet_scores(comparison, 0)["frechet_pixels_infinite"].se is not None
    found = neighbour_scores(comparison)
    assert 0.8 < found["precision"].value <= 1
    assert 0.8 < found["recall"].value <= 1
    assert set(found) == {"precision", "recall", "precision_heldout", "recall_heldout"}
    assert None not in (found["precision"].se, found["recall"].se)


def test_a_baseline_of_too_few_images_has_no_value(comparison):
    few = {**comparison.references, "heldout": reference(mixed(5, 5, 1))}
    scores = frechet_scores(FeatureComparison(comparison.extractor, comparison.sets, few), 0)
    assert "frechet_pixels_heldout" not in scores
    assert "frechet_pixels_gaussian" in scores
    assert "kid_pixels_heldout" not in kernel_scores(FeatureComparison(comparison.extractor, comparison.sets, few), 0)
