"""The functions that an evaluation runs as Ray tasks. Heavy modules are imported by `import_stack` alone."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.runtime.fast_import import import_stack

if TYPE_CHECKING:
    from trainer.evaluate.blocks import Block
    from trainer.evaluate.evaluator import BlockEvaluator
    from trainer.run.summary import Evaluated

MODULES = ("trainer.evaluate.evaluator", "trainer.evaluate.extractors.classifier")


@dataclass(frozen=True)
class TaskContext:
    """What every task of an evaluation needs.

    Attributes:
        network: kind of the network, whose modules a task imports first.
        dataset: folder of the data set.
        config: settings of the evaluation, as JSON.
        package: folder of the model's package.
        blocks: folder of the blocks.
        references: folder of classifiers and reference features.
        threads: number of torch threads of a task.
        device: device of the networks, cpu or cuda.
        background: whether a task runs only on otherwise idle CPUs, so as not to slow down training.
    """

    network: str
    dataset: Path
    config: str
    package: Path
    blocks: Path
    references: Path
    threads: int
    background: bool
    device: str

    def begin(self) -> tuple[Any, Any]:
        """Import modules, set up torch, and read the settings and the data: (EvaluationConfig, Dataset)."""
        if self.background:
            yield_cpu()
        import_stack(MODULES, self.network, self.device)
        import torch

        from diffusion.device import full_precision
        from trainer.config.evaluation import EvaluationConfig
        from trainer.data.dataset import open_dataset

        full_precision()
        torch.set_num_threads(self.threads)
        return EvaluationConfig.model_validate_json(self.config), open_dataset(self.dataset)


def yield_cpu() -> None:
    """Let this process run only on otherwise idle CPUs.

    The lowest niceness alone is not enough: a training worker that wakes up, as it does many times a step, would wait
    for the end of a time slice; a process of the idle class is preempted at once.
    """
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def blocks(context: TaskContext, which: "Sequence[Block]") -> None:
    """Compute and write blocks of the packaged model."""
    context.begin()
    _evaluator(context).keep(which, context.blocks)


@lru_cache(maxsize=1)
def _evaluator(context: TaskContext) -> "BlockEvaluator":
    """The evaluator, loaded once for each process, with the results of the bounds' pilots."""
    config, data = context.begin()
    import torch

    from trainer.evaluate.evaluator import BlockEvaluator

    return BlockEvaluator(context.package, config, data, torch.device(context.device))


def classifier(context: TaskContext) -> None:
    """Train the classifier of the extractor of that name, unless it is stored."""
    config, data = context.begin()
    import torch

    from trainer.evaluate.extractors.load import load_extractor

    torch.set_num_threads(1)  # one thread, so that one seed gives one extractor
    load_extractor("classifier", config, data, context.references)


def features(context: TaskContext, extractor: str, digest: str, which: "Sequence[Block]", sets: Sequence[str]) -> None:
    """Compute and write features of blocks of samples, and of reference sets."""
    config, data = context.begin()
    from trainer.evaluate.extractors.load import load_extractor
    from trainer.evaluate.references.cache import ReferenceCache

    loaded: Any = load_extractor(extractor, config, data, context.references)  # type: ignore[arg-type]
    if loaded.sha256 != digest:
        raise RuntimeError(f"{extractor}: digest {loaded.sha256[:16]} on this node, {digest[:16]} on the driver's")
    cache = ReferenceCache(context.references)
    for name in sets:
        cache.get(data, name, loaded)
    for block in which:
        part = block.pixels.load(context.blocks)
        if part is None:
            raise RuntimeError(f"{block.pixels.file(context.blocks)}: missing, though it was written")
        block.save(context.blocks, {"features": loaded.features(part["pixels"].numpy()).float()})


def views(context: TaskContext, results: Path) -> "Evaluated":
    """Compute the scores of both views from stored blocks; writes pictures and likelihoods to `results`."""
    config, data = context.begin()
    from trainer.evaluate.summarize import both_views

    return both_views(config, data, context.package, context.blocks, context.references, results)
