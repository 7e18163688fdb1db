"""Start-up, made short: a worker is a fresh process, and importing what it needs is most of the wait for a first step.

Imports run with the garbage collector off, and without the packages that DeepSpeed and diffusers import only to know
that they are there: together that takes little more than half the time. docs/benchmarks.md has the numbers.
"""

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

NOT_NEEDED = ("mlflow", "scipy")
NETWORK_MODULES = {
    "unet": ("diffusers.models.unets.unet_2d",),
    "dit": ("diffusers.models.transformers.dit_transformer_2d",),
}


def import_stack(modules: Sequence[str], network: str, device: str) -> None:
    """Import quickly all modules that a process will need.

    Args:
        modules: dotted names of modules to import.
        network: kind of network that the process will build: unet, dit or another.
        device: cpu or cuda.
    """
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    with quick_imports(*NOT_NEEDED):
        for name in (*modules, *NETWORK_MODULES.get(network, ())):
            import_module(name)
    if not gc.get_freeze_count():
        gc.freeze()  # what was just imported stays: the collector need not look at it again


def import_uncompiled(module: str) -> None:
    """Import a module that applies torch.compile to functions which nobody calls: Inductor alone takes a second."""
    import torch

    compile_, undecorated = torch.compile, lambda function=None, **_: function or (lambda each: each)
    torch.compile = undecorated  # pyright: ignore[reportAttributeAccessIssue]
    try:
        import_module(module)
    finally:
        torch.compile = compile_


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
