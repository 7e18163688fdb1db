"""What a profile says, as JSON and as a table."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

OTHER = "everything else"


@dataclass(frozen=True)
class Profile:
    """What was measured on rank 0.

    Attributes:
        device: its name.
        workers: number of ranks.
        batch: images of a step, over all ranks.
        step_ms: milliseconds of a step with no profiler beside it.
        parts_ms: milliseconds a step of each part, of the thread that trains; profiled, which slows them down.
        loader_ms: those of the thread that makes the next batch meanwhile.
        device_ms: milliseconds a step that a GPU worked for each part; empty on CPUs.
        flops_per_image: FLOPs of a training step for each image.
        best: FLOP/s of a matrix product and of a convolution on this device, as measured.
        peak_memory: most bytes of the GPU's memory that were in use, or of this process's where there is no GPU.
    """

    device: str
    workers: int
    batch: int
    step_ms: float
    parts_ms: dict[str, float]
    loader_ms: dict[str, float]
    device_ms: dict[str, float]
    flops_per_image: float
    best: dict[str, float]
    peak_memory: int

    @property
    def images_per_second(self) -> float:
        """Over all ranks."""
        return 1e3 * self.batch / self.step_ms

    @property
    def flops(self) -> float:
        """FLOP/s that a rank achieves."""
        return self.flops_per_image * self.images_per_second / self.workers

    def to_json(self) -> dict[str, Any]:
        """The fields, and what follows from them."""
        shares = {name: self.flops / value for name, value in self.best.items()}
        return {
            **asdict(self),
            "images_per_second": self.images_per_second,
            "flops": self.flops,
            "share_of_best": shares,
            "mfu": min(shares.values()),
        }


def show(profile: Profile, console: "Console") -> None:
    """Print a profile."""
    from rich.table import Table

    total = sum(profile.parts_ms.values())
    table = Table("part of a step", "ms", "share", *(["GPU ms"] if profile.device_ms else []), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, ms in profile.parts_ms.items():
        busy = [f"{profile.device_ms.get(name, 0):.2f}"] if profile.device_ms else []
        table.add_row(name, f"{ms:.2f}", f"{100 * ms / total:.1f} %", *busy)
    console.print(table)
    beside = ", ".join(f"{name} {ms:.2f} ms" for name, ms in profile.loader_ms.items())
    best = ", ".join(
        f"{100 * profile.flops / value:.0f} % of the best {name} ({_flops(value)})"
        for name, value in profile.best.items()
    )
    rank = "" if profile.workers == 1 else f" on each of {profile.workers} ranks"
    for line in (
        f"beside it, in the loader's thread: {beside}",
        f"{profile.images_per_second:,.0f} images/s without the profiler: {profile.batch} images in "
        f"{profile.step_ms:.1f} ms",
        f"{profile.flops_per_image / 1e9:.3g} GFLOP an image, {_flops(profile.flops)}{rank}: {best}",
        f"peak memory {profile.peak_memory / 2**30:.2f} GiB; {profile.device}",
    ):
        console.print(line, markup=False)


def _flops(value: float) -> str:
    return f"{value / 1e12:.1f} TFLOP/s" if value >= 1e12 else f"{value / 1e9:.0f} GFLOP/s"
