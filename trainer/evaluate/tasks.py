"""What the evaluation's Ray tasks run. This module imports nothing heavy, so that `import_stack` does all of it."""

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
    """What every task of an evaluation is told.

    Attributes:
        network: the kind of its network, whose imports a task begins with.
        dataset: the folder of the data.
        config: the evaluation's, as JSON.
        package: the model.
        blocks: where blocks are kept.
        references: where classifiers and references are kept.
        threads: for each task.
        device: on which networks are evaluated, cpu or cuda.
        background: whether it runs only when nothing else would, so that training beside it keeps its CPUs.
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
        """Import, and read the configuration and the data: (EvaluationConfig, Dataset)."""
        if self.background:
            yield_cpu()
        import_stack(MODULES, self.network, self.device)
        import torch

        from trainer.config.evaluation import EvaluationConfig
        from trainer.data.dataset import open_dataset
        from trainer.runtime.device import full_precision

        full_precision()
        torch.set_num_threads(self.threads)
        return EvaluationConfig.model_validate_json(self.config), open_dataset(self.dataset)


def yield_cpu() -> None:
    """Run only when nothing else would.

    The lowest niceness alone would not do: a worker that has waited for the others, as it does many times a step, has
    to wait for the end of a time slice too; a process of the idle class is put aside at once.
    """
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def blocks(context: TaskContext, which: "Sequence[Block]") -> None:
    """Compute blocks of the packaged model, and keep them."""
    context.begin()
    _evaluator(context).keep(which, context.blocks)


@lru_cache(maxsize=1)
def _evaluator(context: TaskContext) -> "BlockEvaluator":
    """Loaded once a process, and with it what the bounds' pilots find: blocks come one after another."""
    config, data = context.begin()
    import torch

    from trainer.evaluate.evaluator import BlockEvaluator

    return BlockEvaluator(context.package, config, data, torch.device(context.device))


def classifier(context: TaskContext) -> None:
    """Train the classifier whose features are compared, unless it is kept."""
    config, data = context.begin()
    import torch

    from trainer.evaluate.extractors.load import load_extractor

    torch.set_num_threads(1)  # one thread, so that one seed gives one extractor
    load_extractor("classifier", config, data, context.references)


def features(context: TaskContext, extractor: str, digest: str, which: "Sequence[Block]", sets: Sequence[str]) -> None:
    """Features of blocks of samples, and of sets of images that they are compared with; keep them."""
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
            raise RuntimeError(f"{block.pixels.file(context.blocks)}: gone since it was written")
        block.save(context.blocks, {"features": loaded.features(part["pixels"].numpy()).float()})


def views(context: TaskContext, results: Path) -> "Evaluated":
    """Put both views together from what is kept; writes their files to `results`."""
    config, data = context.begin()
    from trainer.evaluate.summarize import both_views

    return both_views(config, data, context.package, context.blocks, context.references, results)
