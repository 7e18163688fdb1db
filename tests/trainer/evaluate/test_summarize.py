"""Both views put together from files: each score with its error, what was replicated, and how it was measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.config import Ancestral, DdpmProcess, MLPConfig
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
from trainer.evaluate.blocks import blocks_of, sample_sets
from trainer.evaluate.evaluator import BlockEvaluator
from trainer.evaluate.extractors.base import PixelExtractor, feature_key
from trainer.evaluate.summarize import both_views
from trainer.run.summary import Evaluated, Protocol, evaluated_from_json

SHAPE = (1, 4, 4)
CONFIG = EvaluationConfig(
    metrics=("vlb", "continuous_vlb", "nll", "denoising", "frechet", "kid", "precision_recall"),
    extractors=("pixels",), seeds=2, samples=70, nfe_curve=(2,), solver=Ancestral(num_steps=5), vlb_draws=2,
    nll_rtol=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, Path, Evaluated]:
    """(package, results, both views) of a network that was never trained."""
    package, folder, blocks, results = (tmp_path_factory.mktemp(name) for name in ("package", "data", "blocks", "out"))
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
    return package, results, both_views(CONFIG, data, package, blocks, results / "references", results)


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
