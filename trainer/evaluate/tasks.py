"""What the evaluation's Ray tasks run. This module imports nothing heavy, so that `import_stack` does all of it."""

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config import RunConfig
from trainer.startup import import_stack

if TYPE_CHECKING:
    from trainer.evaluate.classifier import Extractor
    from trainer.evaluate.shards import Shard, ShardResult


def shard(config_json: str, package: Path, dataset_folder: Path, which: "Shard") -> "ShardResult":
    """This shard's samples and bounds of the packaged model."""
    config = RunConfig.model_validate_json(config_json)
    import_stack(config.network.kind, "cpu")
    import torch

    from trainer.data.dataset import open_dataset
    from trainer.evaluate.shards import evaluate_shard

    torch.set_num_threads(max(1, int(config.parallel.cpus_per_worker)))
    return evaluate_shard(package, open_dataset(dataset_folder), config.evaluation, which)


def extractor(config_json: str, dataset_folder: Path) -> "Extractor":
    """The classifier whose features `frechet_classifier` compares."""
    config = RunConfig.model_validate_json(config_json)
    import_stack(config.network.kind, "cpu")
    import torch

    from trainer.data.dataset import open_dataset
    from trainer.evaluate.classifier import train_extractor

    torch.set_num_threads(1)  # one thread, so that one seed gives one extractor
    dataset = open_dataset(dataset_folder)
    return train_extractor(dataset.images("train")[:], dataset.labels("train"), config.evaluation.classifier_seed)
