"""Both views put together from files: each score with its error, what was replicated, and how it was measured."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.config import Ancestral, DdpmProcess, MLPConfig
from diffusion.frechet import Moments
from diffusion.likelihood.continuous import log_snr_ends
from diffusion.network import build_network
from diffusion.package import PackageConfig, load_package, save_package
from trainer.config.evaluation import EvaluationConfig
from trainer.config.run_config import canonical
from trainer.data.dataset import Dataset
from trainer.data.manifest import DatasetInfo
from trainer.data.split import members_of
from trainer.data.store import Store
from trainer.data.writer import Block as Rows, write_dataset
from trainer.errors import InputError
from trainer.evaluate.blocks import blocks_of, sample_sets
from trainer.evaluate.comparison import ComparedModel, protocol_difference
from trainer.evaluate.evaluator import BlockEvaluator
from trainer.evaluate.extractors.base import PixelExtractor, feature_key
from trainer.evaluate.references.published import check_published, load_published
from trainer.evaluate.summarize import both_views
from trainer.run.summary import Evaluated, Protocol, evaluated_from_json

SHAPE = (1, 4, 4)
CONFIG = EvaluationConfig(
    metrics=("vlb", "continuous_vlb", "nll", "denoising", "frechet", "kid", "precision_recall"),
    extractors=("pixels",), seeds=2, samples=70, nfe_curve=(2,), solver=Ancestral(num_steps=5), vlb_draws=2,
    nll_rtol=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> tuple[Path, Dataset, Path]:
    """(package, data, blocks) of a network that was never trained."""
    package, folder, blocks = (tmp_path_factory.mktemp(name) for name in ("package", "data", "blocks"))
    network = MLPConfig(width=16, depth=1)
    process = DdpmProcess(num_train_timesteps=40)
    made = PackageConfig(process=process, prediction="epsilon", network=network, image_shape=SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_package(package, made, build_network(network, SHAPE).state_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (110, 4, 4, 1), dtype=np.uint8)
    known, rows = DatasetInfo("test", "", SHAPE, 0, 0, 0), Rows(pixels, [str(row) for row in range(110)])
    info = write_dataset(
        Store(str(folder)), lambda: iter([rows]), np.full(110, -1), members_of(np.arange(110) >= 60), known
    )
    data = Dataset(folder, info)
    BlockEvaluator(package, CONFIG, data).keep(blocks_of(CONFIG, info.heldout), blocks)
    extractor = PixelExtractor(SHAPE)
    for samples in sample_sets(CONFIG):
        for block in samples.blocks(CONFIG.samples, feature_key(extractor)):
            part = block.pixels.load(blocks)
            assert part is not None
            block.save(blocks, {"features": extractor.features(part["pixels"].numpy()).float()})
    return package, data, blocks


@pytest.fixture(scope="module")
def measured(computed, tmp_path_factory) -> tuple[Path, Path, Evaluated]:
    """(package, results, both views) of it."""
    (package, data, blocks), results = computed, tmp_path_factory.mktemp("out")
    return package, results, both_views(CONFIG, data, package, blocks, results / "references", results)


def published(file: Path, data: Dataset, shift: float = 0.0, **arrays) -> EvaluationConfig:
    """The evaluation with published statistics: those of the training pixels, or moved."""
    features = PixelExtractor(SHAPE).features(data.images("train")[:])
    mean, covariance = Moments.of(features).mean_and_covariance()
    np.savez(file, **{"mu": mean.numpy() + shift, "sigma": covariance.numpy(), **arrays})
    return CONFIG.model_copy(update={"reference": str(file)})


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_distance_to_published_statistics_stands_without_our_own_yardsticks(computed, measured, tmp_path, shift):
    (package, data, blocks), (_, results, ours) = computed, measured
    config = published(tmp_path / "statistics.npz", data, shift)
    check_published(config, data.info)
    found = both_views(config, data, package, blocks, results / "references", tmp_path)
    assert found.scores["frechet_pixels"].value == pytest.approx(ours.scores["frechet_pixels"].value, abs=1e-9) or shift
    digest = hashlib.sha256((tmp_path / "statistics.npz").read_bytes()).hexdigest()
    for name, score in found.scores.items():
        assert score.protocol is not None
        assert score.protocol.reference == (digest if name.startswith("frechet_pixels") else None)
    yardsticks = {f"frechet_pixels_{name}" for name in ("heldout", "gaussian", "noise")}
    assert set(ours.scores) - set(found.scores) == yardsticks & set(ours.scores) != set()
    [note] = [note for note in found.notes if "published" in note]
    assert note.startswith(f"frechet_pixels is to published statistics ({digest[:8]}), so frechet_pixels_heldout, ")
    again = evaluated_from_json(json.loads(json.dumps(found.to_json())))
    assert again.scores["frechet_pixels"].protocol == found.scores["frechet_pixels"].protocol
    first, other = (ComparedModel(name, "d", each, {}) for name, each in (("ours", ours), ("theirs", found)))
    assert protocol_difference(first, first, "frechet_pixels") is None
    assert protocol_difference(first, other, "frechet_pixels") == (
        f"it is to statistics {digest[:8]}, not the training images"
    )


def test_a_mean_that_is_moved_moves_the_distance_by_what_the_formula_says(computed, tmp_path):
    """||mu_a - mu_b||^2 is all that changes, and its change is linear in the samples' own difference."""
    data = computed[1]
    plain, moved = (
        load_published(Path(str(published(tmp_path / f"{shift}.npz", data, shift).reference))).reference
        for shift in (0.0, 0.5)
    )
    samples = Moments.of(torch.from_numpy(np.random.default_rng(3).normal(size=(99, 16))))
    mean = samples.mean_and_covariance()[0]
    expected = float(((plain.mean + 0.5 - mean) ** 2 - (plain.mean - mean) ** 2).sum())
    assert moved.distance(samples) - plain.distance(samples) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(9), "sigma": np.eye(9)}, r"statistics of 9 features; allowed: .*\(pixels has 16\)"),
        ({"mu": np.zeros(16), "sigma": np.eye(9)}, r"mu is \(16,\), sigma \(9, 9\); allowed: \[d\] and \[d, d\]"),
        ({"mu": np.full(16, np.nan)}, "holds NaN or infinity"),
        ({"sigma": np.triu(np.ones((16, 16)))}, "is not a covariance"),
        ({"sigma": -np.eye(16)}, "is not a covariance"),
        ({"mu": np.array([{}], dtype=object)}, "not an .npz with mu and sigma"),
    ],
)
def test_statistics_that_are_none_are_refused(computed, tmp_path, arrays, said):
    config = published(tmp_path / "statistics.npz", computed[1], **arrays)
    with pytest.raises(InputError, match=rf"evaluation\.reference.*{said}"):
        check_published(config, computed[1].info)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"text", "not an .npz"), ("npy", "not an .npz"), ("other", "has no mu")],
)
def test_a_file_of_something_else_is_refused(computed, tmp_path, content, said):
    file = tmp_path / "statistics.npz"
    if content == "npy":
        with file.open("wb") as out:
            np.save(out, np.zeros(3))
    elif content == "other":
        np.savez(file, mean=np.zeros(3))
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=rf"evaluation\.reference: .*{said}"):
        check_published(CONFIG.model_copy(update={"reference": str(file)}), computed[1].info)


def test_likelihoods_are_means_over_the_heldout_images(measured):
    _, results, evaluated = measured
    for name in ("vlb_bpd", "vlb_prior_bpd", "continuous_vlb_diffusion_bpd", "nll_bpd"):
        score = evaluated.scores[name]
        assert (score.replicate, score.n, score.df) == ("images", 50, 49)
        assert score.se is not None
    from safetensors.torch import load_file

    nats = load_file(results / "heldout.safetensors")["vlb"] / np.log(2) / 16
    assert evaluated.scores["vlb_bpd"].value == pytest.approx(float(nats.mean()), rel=1e-12)
    assert evaluated.scores["vlb_bpd"].se == pytest.approx(float(nats.std() / 50**0.5), rel=1e-12)


def test_scores_of_samples_are_means_over_seeds(measured):
    _, _, evaluated = measured
    for name in ("frechet_pixels", "kid_pixels", "precision", "recall"):
        score = evaluated.scores[name]
        assert (score.replicate, score.n, score.df) == ("seeds", 2, 1)
        assert score.se == pytest.approx((score.sd or 0) / 2**0.5)
    assert evaluated.scores["frechet_pixels_heldout"].se is None
    assert [point.nfe for point in evaluated.frechet_at_nfe["frechet_pixels"]] == [2, 5]


def test_each_score_says_how_it_was_measured(measured):
    package, _, evaluated = measured
    ends = log_snr_ends(load_package(package)[0].process)
    assert evaluated.scores["vlb_bpd"].protocol == Protocol()
    assert (
        evaluated.scores["continuous_vlb_bpd"].protocol
        == evaluated.scores["nll_bpd"].protocol
        == Protocol(log_snr_ends=ends)
    )
    sampled = Protocol(
        samples=70,
        sampler=canonical(CONFIG.solver.model_dump(mode="json")),
        extractors={"pixels": PixelExtractor(SHAPE).sha256},
    )
    assert all(evaluated.scores[name].protocol == sampled for name in ("frechet_pixels", "kid_pixels", "recall"))


def test_the_file_says_all_of_it_and_pictures_are_there(measured):
    _, results, evaluated = measured
    assert evaluated_from_json(json.loads(json.dumps(evaluated.to_json()))) == evaluated
    written = {path.name for path in results.iterdir()}
    assert {"samples.npy", "samples.png", "neighbours.png", "heldout.safetensors", "denoising.json"} <= written
    assert np.load(results / "samples.npy").shape == (70, 4, 4)
