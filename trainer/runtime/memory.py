"""A bound on the memory that a process takes while it reads what somebody else has made.

A Parquet file of a kilobyte may hold pages, or a dictionary and rows that point to it, which expand to gigabytes.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GIB = 2**30


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """Let this process map at most so many bytes more, in all its threads; no bound where the system tells no size.

    Raises:
        MemoryError: in the block, by whatever asks for more; pyarrow's is one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        yield
        return
    limits = [
        pages * os.sysconf("SC_PAGE_SIZE") + more,
        *(each for each in (soft, hard) if each != resource.RLIM_INFINITY),
    ]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
