"""Start-up, made short: a worker is a fresh process, and importing what it needs is most of the wait for a first step.

Imports run with the garbage collector off, and without the packages that DeepSpeed and diffusers import only to know
that they are there: together that takes little more than half the time. docs/benchmarks.md has the numbers.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process fewer; nothing here asks for its answer
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # how late Ray Train sees that its workers are done
}
NOT_NEEDED = ("mlflow", "scipy")


@contextmanager
def quick_imports(*without: str) -> Iterator[None]:
    """Import with the garbage collector off, and as if packages that are not imported yet were not installed."""
    hidden = [name for name in without if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] - None makes `import` say: not installed
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if collecting:
            gc.enable()


def import_stack(network: str, device: str) -> None:
    """Import all that a training worker or an evaluation task will want for this kind of network."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    with quick_imports(*NOT_NEEDED):
        import trainer.evaluate.classifier
        import trainer.evaluate.shards
        import trainer.loop  # noqa: F401

        if network == "unet":
            import diffusers.models.unets.unet_2d
        elif network == "dit":
            import diffusers.models.transformers.dit_transformer_2d  # noqa: F401
        import deepspeed  # noqa: F401
    if not gc.get_freeze_count():
        gc.freeze()  # what was just imported stays: the collector need not look at it again
