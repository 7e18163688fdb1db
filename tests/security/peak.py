"""How much memory a process has taken, for programs that tests start."""

from pathlib import Path


def peak() -> int:
    """Kilobytes that this process had at most; `ru_maxrss` is that of whoever started it, if that had more."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
