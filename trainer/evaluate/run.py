"""The evaluation of a finished run as Ray tasks, and the files it leaves in the results folder."""

from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusion.images import grid
from diffusion.likelihood import Vlb, bits_per_dim
from trainer.config import RunConfig
from trainer.data.dataset import Dataset
from trainer.evaluate import tasks
from trainer.evaluate.classifier import Extractor
from trainer.evaluate.frechet import frechet_table
from trainer.evaluate.shards import Shard, ShardResult
from trainer.paths import RunPaths

GRID_IMAGES = 64


def evaluate(config: RunConfig, paths: RunPaths, dataset: Dataset) -> dict[str, Any]:
    """Sample and score the package on as many tasks as there may be workers; writes samples.npy and samples.png.

    Returns:
        Metrics by the names of the house, and what they were measured with.
    """
    count = config.parallel.most_workers
    shard_task = ray.remote(num_cpus=config.parallel.cpus_per_worker)(tasks.shard)
    extractor_task = ray.remote(num_cpus=config.parallel.cpus_per_worker)(tasks.extractor)
    shards = [
        shard_task.remote(config.canonical_json(), paths.package, dataset.folder, Shard(i, count)) for i in range(count)
    ]
    extractor = extractor_task.remote(config.canonical_json(), dataset.folder) if dataset.info.classes else None
    results: list[ShardResult] = ray.get(shards)
    samples = _in_order({block: pixels for result in results for block, pixels in result.samples.items()})
    terms = {block: terms for result in results for block, terms in result.vlb.items()}
    paths.results.mkdir(parents=True, exist_ok=True)
    np.save(paths.results / "samples.npy", samples[..., 0] if samples.shape[-1] == 1 else samples)
    Image.fromarray(grid(samples[:GRID_IMAGES])).save(paths.results / "samples.png")
    metrics: dict[str, Any] = {"samples": len(samples), **vlb_metrics(terms, samples[0].size)}
    if extractor is not None:
        metrics |= _frechet_metrics(ray.get(extractor), config, dataset, samples)
    return metrics


def _in_order(blocks: dict[range, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.concatenate([blocks[block] for block in sorted(blocks, key=lambda block: block.start)])


def vlb_metrics(blocks: dict[range, Vlb], dimensions: int) -> dict[str, float]:
    """Mean over images of the bound and of its terms in bits/dim, each with its standard error.

    The standard error is that of the mean over images: it holds both their differences and the noise of the estimate.
    """
    terms = [blocks[block] for block in sorted(blocks, key=lambda block: block.start)]
    metrics = {}
    for name, field in (
        ("", "total"),
        ("prior_", "prior"),
        ("diffusion_", "diffusion"),
        ("reconstruction_", "reconstruction"),
    ):
        values = bits_per_dim(torch.cat([getattr(term, field) for term in terms]), dimensions)
        metrics[f"vlb_{name}bpd"] = float(values.mean())
        metrics[f"vlb_{name}bpd_se"] = float(values.std() / len(values) ** 0.5)
    return metrics


def _frechet_metrics(
    extractor: Extractor, config: RunConfig, dataset: Dataset, samples: NDArray[np.uint8]
) -> dict[str, Any]:
    train, heldout = dataset.images("train")[:], dataset.images("heldout")[:]
    table = frechet_table(extractor, train, heldout, samples, config.evaluation.seed)
    return {
        "frechet_classifier": table.samples,
        "frechet_classifier_heldout": table.heldout,
        "frechet_classifier_gaussian": table.gaussian,
        "frechet_classifier_noise": table.noise,
        "classifier": {
            "sha256": extractor.sha256,
            "seed": config.evaluation.classifier_seed,
            "heldout_accuracy": extractor.accuracy(heldout, dataset.labels("heldout")),
        },
    }
