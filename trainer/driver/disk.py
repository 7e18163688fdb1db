"""What a run takes of its storage: estimated before it starts, counted while it stands, given back when it is done."""

import shutil
from dataclasses import astuple, dataclass
from pathlib import Path

from trainer.config.evaluation import EvaluationConfig
from trainer.config.run_config import RunConfig
from trainer.data.manifest import DatasetInfo
from trainer.ema.snapshots import interval
from trainer.errors import InputError
from trainer.evaluate.blocks import sample_sets
from trainer.evaluate.extractors.dimensions import dimensions, extractors_of
from trainer.run.manifest import complete_steps, step_folder
from trainer.run.paths import RunPaths

FLOAT_BYTES = 4
KINDS_IN_CHECKPOINT = 5  # weights, two moments, two EMA tracks
TRACKS = 2
FEATURE_BYTES = 8
REPORT_BYTES = 1_000_000  # pages and pictures
UNFINISHED = 2  # checkpoints that may be being written beside those that are kept


@dataclass(frozen=True)
class DiskUse:
    """Bytes by what they are for."""

    checkpoints: int
    snapshots: int
    package: int
    evaluation: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))

    def describe(self) -> str:
        """In words, without what takes nothing."""
        parts = {
            "checkpoints": self.checkpoints,
            "EMA snapshots": self.snapshots,
            "package": self.package,
            "evaluation": self.evaluation,
        }
        listed = ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
        return f"{size(self.total)}{f' ({listed})' if listed else ''}"


def size(count: int) -> str:
    """A number of bytes for people: 1.2 GB."""
    power = max(0, min(4, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:.{0 if power == 0 else 1}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def estimate(config: RunConfig, info: DatasetInfo, parameters: int) -> DiskUse:
    """The most that a run of this configuration holds at a time.

    Args:
        config: its configuration.
        info: its data.
        parameters: how many numbers are trained.
    """
    weights, run, steps = FLOAT_BYTES * parameters, config.run, config.training.steps
    checkpoints = min(-(-steps // run.checkpoint_every), run.keep_checkpoints + 1 + UNFINISHED)
    snapshots = steps // interval(steps, config.ema.snapshot_every)
    recorded_beside = 2 if str(run.tracking_uri).startswith("sqlite:") else 1  # MLflow's copy
    return DiskUse(
        checkpoints * KINDS_IN_CHECKPOINT * weights,
        snapshots * TRACKS * weights,
        (recorded_beside + bool(config.training.init_sha256)) * weights,
        _of_samples(config.evaluation, info),
    )


def _of_samples(config: EvaluationConfig, info: DatasetInfo) -> int:
    if not config.samples_images:
        return 0
    channels, height, width = info.image_shape
    features = sum(dimensions(name, info.image_shape) for name in extractors_of(config, info.classes))
    return REPORT_BYTES + len(sample_sets(config)) * config.samples * (
        channels * height * width + FEATURE_BYTES * features
    )


def held(paths: RunPaths) -> DiskUse:
    """What a run's folder holds now; results and the journal count as evaluation."""
    used = {folder: _bytes(folder) for folder in (paths.checkpoints, paths.ema, paths.package)}
    return DiskUse(
        used[paths.checkpoints], used[paths.ema], used[paths.package], _bytes(paths.root) - sum(used.values())
    )


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:  # removed meanwhile
            continue
    return total


def check_space(need: DiskUse, config: RunConfig, paths: RunPaths, parameters: int) -> tuple[str, str | None]:
    """Compare what a run needs with what is free.

    Returns:
        A line for the user, and a warning where it may not be enough.

    Raises:
        InputError: there is no room for one checkpoint and the package.
    """
    have, free = held(paths), shutil.disk_usage(_existing(paths.root)).free
    least = (KINDS_IN_CHECKPOINT + 1) * FLOAT_BYTES * parameters
    if least > free and not have.checkpoints:
        raise InputError(
            f"run.storage = {config.run.storage!r}: {size(free)} free; allowed: at least {size(least)}, for one "
            "checkpoint and the package"
        )
    line = f"disk: at most {need.describe()}; {size(free)} free"
    if need.total - have.total <= free:
        return line, None
    return line, (
        f"storage may run full: the run takes up to {size(need.total)}, and has {size(have.total)} of it; "
        f"{size(free)} are free. To use less, lower run.keep_checkpoints or raise ema.snapshot_every"
    )


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def give_back(config: RunConfig, paths: RunPaths) -> None:
    """Remove what `run.keep` says that a run which is done and recorded need not keep.

    With the newest checkpoint stay the EMA snapshots where the model's width is made of them.
    """
    keep = config.run.keep
    if keep == "all":
        return
    shutil.rmtree(paths.initial, ignore_errors=True)
    if keep == "package":
        shutil.rmtree(paths.checkpoints, ignore_errors=True)
    if keep == "package" or config.ema.sigma_rel in config.ema.tracks:
        shutil.rmtree(paths.ema, ignore_errors=True)
    newest = complete_steps(paths.checkpoints)[-1:]
    for folder in paths.checkpoints.glob("*"):
        if folder.name not in [step_folder(paths.checkpoints, step).name for step in newest]:
            shutil.rmtree(folder, ignore_errors=True)
