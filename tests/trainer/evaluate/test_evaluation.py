"""Evaluation: work that falls apart into blocks and comes together the same, and baselines that are what they say."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from diffusion.config import Ancestral, Autoguidance, ClassifierFree, DdpmProcess, MLPConfig
from diffusion.images import to_model_range, to_pixels
from diffusion.likelihood.bound import Vlb
from diffusion.likelihood.discrete import bits_per_dim
from diffusion.likelihood.ode import dequantised_bits_per_dim
from diffusion.network import build_network
from diffusion.package import PackageConfig, load_package, save_package
from diffusion.rng import Stream, counter_normal
from diffusion.solvers import ImageNoise, autoguided, solve
from trainer.config.data import DataConfig
from trainer.config.evaluation import SAMPLED, EvaluationConfig, Metric
from trainer.data.arrays import load_array
from trainer.data.dataset import Dataset
from trainer.data.manifest import DatasetInfo
from trainer.data.split import members_of
from trainer.data.store import Store
from trainer.data.writer import Block as Rows, write_dataset
from trainer.evaluate import blocks as blocks_module
from trainer.evaluate.blocks import Block, Kind, SampleSet, blocks_of
from trainer.evaluate.evaluator import BlockEvaluator, spread_labels
from trainer.evaluate.extractors import classifier
from trainer.evaluate.extractors.classifier import train_extractor
from trainer.evaluate.likelihood import scorer as likelihoods_module
from trainer.evaluate.likelihood.scores import bound_scores
from trainer.evaluate.references.baselines import fitted_gaussian, uniform_noise
from trainer.evaluate.results import EvaluationResults
from trainer.run.summary import Evaluated

SHAPE = (1, 4, 4)
EVALUATION = EvaluationConfig(samples=70, solver=Ancestral(num_steps=5), vlb_draws=6, seed=3)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    write(folder, MLPConfig(width=16, depth=1), 0)
    return folder


def write(folder, network, seed, null_label_trained=None):
    config = PackageConfig(
        process=DdpmProcess(num_train_timesteps=40),
        prediction="epsilon",
        network=network,
        image_shape=SHAPE,
        null_label_trained=null_label_trained,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_package(folder, config, build_network(network, SHAPE).state_dict())


@pytest.fixture(scope="module")
def heldout():
    return np.random.default_rng(0).integers(0, 256, (21, 4, 4, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, heldout):
    folder = tmp_path_factory.mktemp("dataset")
    train = np.random.default_rng(1).integers(0, 256, (50, 4, 4, 1), dtype=np.uint8)
    block = Rows(np.concatenate([train, heldout]), [str(row) for row in range(71)])
    labels = np.concatenate([np.arange(50) % 3, np.arange(21) % 3])
    known = DatasetInfo("test", "", SHAPE, 0, 0, 3)
    return Dataset(
        folder, write_dataset(Store(str(folder)), lambda: iter([block]), labels, members_of(np.arange(71) >= 50), known)
    )


METRICS = ("vlb", "continuous_vlb", "nll", "denoising", "frechet")
ALL = EVALUATION.model_copy(update={"metrics": METRICS, "seeds": 2, "nfe_curve": (2, 5)})


@given(st.integers(1, 500), st.integers(65, 500), st.integers(1, 3), st.sampled_from(get_args(Metric)))
def test_blocks_are_all_items_of_what_is_measured_exactly_once(heldout, samples, seeds, metric):
    config = EvaluationConfig(metrics=(metric,), samples=samples, seeds=seeds, seed=5)
    blocks = blocks_of(config, heldout)
    items = [(block.seed, item) for block in blocks for item in block.items]
    wanted = range(5, 5 + seeds) if metric in SAMPLED else [5]
    total = samples if metric in SAMPLED else heldout
    assert sorted(items) == [(seed, item) for seed in wanted for item in range(total)]
    assert {block.kind for block in blocks} == {"samples" if metric in SAMPLED else metric}
    assert len({block.file(Path()) for block in blocks}) == len(blocks)


@pytest.mark.parametrize("count", [2, 3])
def test_results_do_not_depend_on_who_computes_which_block_bitwise(package, dataset, monkeypatch, tmp_path, count):
    monkeypatch.setattr(
        blocks_module, "IMAGES_PER_BLOCK", dict.fromkeys(blocks_module.IMAGES_PER_BLOCK, 8) | {"samples": 16}
    )
    blocks = blocks_of(ALL, 21)
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    BlockEvaluator(package, ALL, dataset).keep(blocks, tmp_path / "whole")
    for index in reversed(range(count)):
        BlockEvaluator(package, ALL, dataset).keep(blocks[index::count], tmp_path / "parts")
    whole, parts = (EvaluationResults(tmp_path / name, blocks, ALL) for name in ("whole", "parts"))
    for each in (SampleSet(3), SampleSet(4), SampleSet(3, 2)):
        assert len(parts.samples(each)) == 70
        assert np.array_equal(parts.samples(each), whole.samples(each))
    for kind in ("vlb", "continuous_vlb"):
        assert torch.equal(parts.bound(kind).total, whole.bound(kind).total)
        assert len(parts.bound(kind).total) == 21
    fields: list[tuple[Kind, str]] = [("nll", "nll"), ("nll", "evaluations"), ("denoising", "x0_error")]
    for kind, field in fields:
        assert torch.equal(parts.joined(kind, field), whole.joined(kind, field))


def test_what_a_block_found_is_read_back_and_what_is_spoilt_is_not(tmp_path):
    block, values = Block("nll", 3, 32, 4), {"nll": torch.arange(4, dtype=torch.float64)}
    assert block.load(tmp_path) is None
    block.save(tmp_path, values)
    assert [path.name for path in tmp_path.iterdir()] == ["nll-3-00000032.safetensors"]
    found = block.load(tmp_path)
    assert found is not None
    assert torch.equal(found["nll"], values["nll"])
    assert replace(block, count=5).load(tmp_path) is None
    block.file(tmp_path).write_bytes(block.file(tmp_path).read_bytes()[:-3])
    assert block.load(tmp_path) is None


def test_the_three_likelihoods_of_one_model_are_of_one_size_and_nothing_else(package, dataset):
    """An untrained network is far from the data in all three; each has its own value."""
    likelihoods = BlockEvaluator(package, EVALUATION, dataset).likelihoods
    with torch.inference_mode():
        nll, evaluations = likelihoods.nll(range(21))
        bits = [
            float(bits_per_dim(likelihoods.vlb(range(21)).total, 16).mean()),
            float(bits_per_dim(likelihoods.continuous_vlb(range(21)).total, 16).mean()),
            float(dequantised_bits_per_dim(nll, 16).mean()),
        ]
    assert bool((evaluations > 6).all())
    assert all(7 < value < 20 for value in bits)
    assert len({round(value, 6) for value in bits}) == 3


def test_closer_integration_changes_the_density_less_and_less(package, dataset):
    found = []
    for rtol in (1e-2, 1e-3, 1e-4, 1e-6):
        config = EVALUATION.model_copy(update={"nll_rtol": rtol})
        found.append(BlockEvaluator(package, config, dataset).likelihoods.nll(range(4))[0])
    errors = [float((nll - found[-1]).abs().max()) for nll in found[:-1]]
    assert errors[2] < errors[1] < errors[0]
    assert errors[1] < 0.05


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.integers(0, 10**9), st.randoms())
def test_samples_have_the_classes_of_the_data_as_often(counts, first, random):
    """Within a few of each, whatever the order of the data and wherever a run of 512 samples begins."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    random.shuffle(labels)
    drawn = np.bincount(spread_labels(np.array(labels), range(first, first + 512)), minlength=len(counts))
    assert np.abs(drawn - 512 * np.array(counts) / sum(counts)).max() <= 6


def test_samples_are_the_images_of_the_seed(package, dataset):
    evaluator = BlockEvaluator(package, EVALUATION, dataset)
    with torch.inference_mode():
        assert np.array_equal(evaluator.samples(3, [8, 9, 10, 11])[2], evaluator.samples(3, [10, 8, 11, 9])[0])
        assert not np.array_equal(evaluator.samples(3, range(4)), evaluator.samples(4, range(4)))


def test_a_network_on_another_device_gives_the_same(package, dataset):
    """`cpu:0` is another device than `cpu` by name, and the way to it and back is that to a GPU."""
    here, there = (BlockEvaluator(package, ALL, dataset, torch.device(name)) for name in ("cpu", "cpu:0"))
    assert here.denoiser.network is not there.denoiser.network
    with torch.inference_mode():
        for kind in ("samples", "vlb", "continuous_vlb", "nll", "denoising"):
            block = Block(kind, 3, 4, 6)
            a, b = here.compute(block), there.compute(block)
            assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_network_on_a_gpu_gives_nearly_the_same(package, dataset):
    here, there = (BlockEvaluator(package, ALL, dataset, torch.device(name)) for name in ("cpu", "cuda"))
    with torch.inference_mode():
        for kind in ("vlb", "continuous_vlb", "nll", "denoising"):
            block = Block(kind, 3, 4, 6)
            a, b = here.compute(block), there.compute(block)
            for name in set(a) - {"evaluations"}:
                torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-3)


def test_every_image_is_scored_once_in_each_stratum_of_the_proposal(package, dataset, heldout, monkeypatch):
    """Six draws: draw k falls into the k-th sixth of the proposal's distribution, for every image on its own."""
    seen = []
    monkeypatch.setattr(
        likelihoods_module,
        "estimate_vlb",
        lambda kernel, x_0, steps, eps, weights, label: seen.append((x_0, steps, eps, weights)),
    )
    likelihoods = BlockEvaluator(package, EVALUATION, dataset).likelihoods
    with torch.inference_mode():
        likelihoods.vlb(range(8))
    ((x_0, steps, eps, weights),) = seen
    probabilities = likelihoods.step_proposal.probabilities
    assert torch.equal(x_0, to_model_range(heldout[:8]))
    assert eps.shape == (8, 7, *SHAPE)
    torch.testing.assert_close(weights, 1 / probabilities[steps - 2])
    below = torch.cat([torch.zeros(1), probabilities.cumsum(0)])
    for k in range(6):
        assert bool((below[steps[:, k] - 1] >= k / 6).all())
        assert bool((below[steps[:, k] - 2] <= (k + 1) / 6).all())
    assert len(torch.unique(eps.flatten(0, 1).flatten(1), dim=0)) == 56


def test_the_estimate_over_many_draws_is_the_exact_bound(package, dataset, heldout):
    """The sum over all steps 2..T, with 4000 draws of an image's own: within four standard errors of its estimate."""
    config = EVALUATION.model_copy(update={"vlb_draws": 4000})
    likelihoods = BlockEvaluator(package, config, dataset).likelihoods
    with torch.inference_mode():
        vlb = likelihoods.vlb(range(1, 2))
        x_0 = to_model_range(heldout[1:2]).expand(64 * 39, *SHAPE)
        steps = torch.arange(2, 41).repeat(64)
        noise = counter_normal(5, Stream.LIKELIHOOD_NOISE, [(0, i) for i in range(64 * 39)], SHAPE)
        terms = likelihoods.kernel.diffusion_kl(x_0, steps, noise).reshape(64, 39)
    total = float(terms.sum(1).mean())
    second_moment = float((terms.square().mean(0) / likelihoods.step_proposal.probabilities).sum())
    error = (float(terms.sum(1).var()) / 64 + (second_moment - total**2) / 4000) ** 0.5
    assert float(vlb.diffusion[0]) == pytest.approx(total, abs=4 * error)
    assert error < 0.02 * total


def test_a_model_that_was_never_trained_without_labels_is_scored_with_them_like_any_other(tmp_path, dataset):
    for trained in (True, False):
        write(tmp_path / str(trained), MLPConfig(width=16, depth=1, classes=3), 0, trained)
    one, other = (BlockEvaluator(tmp_path / str(trained), ALL, dataset) for trained in (True, False))
    assert (one.denoiser.needs_label, other.denoiser.needs_label) == (False, True)
    with torch.inference_mode():
        for kind in ("samples", "vlb", "continuous_vlb", "nll", "denoising"):
            block = Block(kind, 3, 4, 6)
            a, b = one.compute(block), other.compute(block)
            assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["classifier_free", "autoguidance"])
def test_samples_of_a_model_with_classes_have_the_classes_of_the_data(tmp_path, dataset, kind):
    folders = [tmp_path / "strong", tmp_path / "weak"]
    for seed, folder in enumerate(folders):
        write(folder, MLPConfig(width=16, depth=1, classes=3), seed)
    guidance = {"classifier_free": ClassifierFree(scale=2.0), "autoguidance": Autoguidance(guide=str(folders[1]))}
    config = EVALUATION.model_copy(update={"guidance": guidance[kind]})
    evaluator = BlockEvaluator(folders[0], config, dataset)
    with torch.inference_mode():
        found = evaluator.samples(3, range(6))
        label = torch.from_numpy(spread_labels(dataset.labels("train"), range(6)))
        noise = ImageNoise(3, range(6), SHAPE)
        if kind == "classifier_free":
            expected = solve(evaluator.denoiser, noise, EVALUATION.solver, label, ClassifierFree(scale=2.0))
        else:
            both = autoguided(evaluator.denoiser, load_package(folders[1])[0], 1.5)
            expected = solve(both, noise, EVALUATION.solver, label)
        unguided = solve(evaluator.denoiser, noise, EVALUATION.solver, label)
    assert np.array_equal(found, to_pixels(expected))
    assert not np.array_equal(found, to_pixels(unguided))


def test_bounds_are_means_in_bits_with_standard_errors_of_the_mean():
    unit = np.log(2) * 16
    values = ([0.5, 0.5, 0.5, 2.5], [1.0, 1.0, 3.0, 5.0], [2.0, 2.0, 10.0, 12.0])
    scores = bound_scores("vlb", Vlb(*(torch.tensor(v, dtype=torch.float64) * unit for v in values)), 16)
    columns = {"prior_": [0.5, 0.5, 0.5, 2.5], "diffusion_": [1, 1, 3, 5], "reconstruction_": [2, 2, 10, 12]}
    columns[""] = np.sum(list(columns.values()), axis=0)
    expected = {f"vlb_{name}bpd": np.mean(values) for name, values in columns.items()}
    expected |= {f"vlb_{name}bpd_se": np.std(values, ddof=1) / 2 for name, values in columns.items()}
    found = Evaluated(scores).numbers()
    assert found == pytest.approx(expected, rel=1e-12)
    assert {(score.replicate, score.n, score.df) for score in scores.values()} == {("images", 4, 3)}
    assert found["vlb_bpd"] == pytest.approx(
        sum(found[f"vlb_{term}_bpd"] for term in ("prior", "diffusion", "reconstruction"))
    )


def test_fitted_gaussian_has_the_training_mean_and_covariance():
    rng = np.random.default_rng(1)
    train = np.clip(rng.normal(128, 12, (500, 2, 1, 1)), 0, 255)
    train = np.concatenate([train, 0.5 * train + 40 + rng.normal(0, 3, train.shape)], axis=2).astype(np.uint8)
    draws = fitted_gaussian(train, 20000, 7).reshape(20000, 4).astype(float)
    flat = train.reshape(500, 4).astype(float)
    assert draws.mean(0) == pytest.approx(flat.mean(0), abs=4 * flat.std() / 20000**0.5)
    rounding = np.eye(4) / 12
    scale = np.sqrt(np.outer(flat.var(0), flat.var(0)))
    found, wanted = np.cov(draws, rowvar=False), np.cov(flat, rowvar=False) + rounding
    assert float(np.abs((found - wanted) / scale).max()) < 4 * 2**0.5 / 20000**0.5


def test_fitted_gaussian_is_clipped_to_pixels_and_keyed_by_seed():
    train = np.random.default_rng(2).choice(np.array([0, 255], dtype=np.uint8), (100, 3, 3, 1))
    first = fitted_gaussian(train, 50, 1)
    assert first.dtype == np.uint8
    assert first.shape == (50, 3, 3, 1)
    assert {0, 255} <= set(first.flatten())
    assert np.array_equal(first, fitted_gaussian(train, 50, 1))
    assert not np.array_equal(first, fitted_gaussian(train, 50, 2))


def test_noise_covers_all_levels_evenly():
    pixels = uniform_noise(np.zeros((1, 8, 8, 3), dtype=np.uint8), 400, 0)
    counts = np.bincount(pixels.flatten(), minlength=256)
    assert pixels.shape == (400, 8, 8, 3)
    expected = pixels.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < 331  # chi-square, 255 degrees of freedom, 0.1 %


@pytest.fixture(scope="module")
def digits():
    data = load_array(DataConfig())
    return data.pixels[:400], data.labels[:400]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(classifier, "EPOCHS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_one_seed_gives_one_extractor_and_leaves_the_global_state_alone(digits, short):
    torch.manual_seed(99)
    state = torch.get_rng_state()
    first = train_extractor(*digits, classes=10, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    again, other = train_extractor(*digits, classes=10, seed=0), train_extractor(*digits, classes=10, seed=1)
    assert first.sha256 == again.sha256 != other.sha256
    assert torch.equal(first.features(digits[0]), again.features(digits[0]))


def test_features_are_those_of_the_last_hidden_layer_and_do_not_depend_on_the_rest_of_the_set(digits, short):
    extractor = train_extractor(*digits, classes=10, seed=0)
    features = extractor.features(digits[0])
    assert features.dtype == torch.float64
    with torch.inference_mode():
        logits = extractor.network(to_model_range(digits[0]))
        torch.testing.assert_close(extractor.network.head(features.float()), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extractor.features(digits[0][5:9]), features[5:9], rtol=1e-5, atol=1e-5)
    right = (logits.argmax(1).numpy() == digits[1]).mean()
    assert extractor.accuracy(*digits) == right > 0.5
