"""What the evaluation's Ray tasks run. This module imports nothing heavy, so that `import_stack` does all of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.startup import import_stack

if TYPE_CHECKING:
    from trainer.evaluate.blocks import Block
    from trainer.evaluate.classifier import Extractor


def blocks(
    network: str,
    dataset_folder: Path,
    threads: int,
    config_json: str,
    package: Path,
    folder: Path,
    which: "Sequence[Block]",
) -> None:
    """Compute blocks of the packaged model, and keep them."""
    import_stack(network, "cpu")
    import torch

    from trainer.config import EvaluationConfig
    from trainer.data.dataset import open_dataset
    from trainer.evaluate.shards import evaluate_blocks

    torch.set_num_threads(threads)
    config = EvaluationConfig.model_validate_json(config_json)
    evaluate_blocks(package, open_dataset(dataset_folder), config, folder, which)


def extractor(network: str, dataset_folder: Path, seed: int) -> "Extractor":
    """The classifier whose features `frechet_classifier` compares."""
    import_stack(network, "cpu")
    import torch

    from trainer.data.dataset import open_dataset
    from trainer.evaluate.classifier import train_extractor

    torch.set_num_threads(1)  # one thread, so that one seed gives one extractor
    dataset = open_dataset(dataset_folder)
    return train_extractor(dataset.images("train")[:], dataset.labels("train"), seed)
