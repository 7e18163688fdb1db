"""Start-up, made short: a worker is a fresh process, and importing what it needs is most of the wait for a first step.

Imports run with the garbage collector off, and without the packages that DeepSpeed and diffusers import only to know
that they are there: together that takes little more than half the time. docs/benchmarks.md has the numbers.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
