"""Damaged checkpoints: set aside, so that they are never taken for the newest, and never passed over in silence."""

from contextlib import suppress
from pathlib import Path

from diffusion import durable
from trainer.checkpoint.reader import LatestCheckpoint, find_latest
from trainer.errors import InputError
from trainer.run.manifest import OtherVersionError

REFUSED, DISCARDED = "refused", "discarded"


class NoGoodCheckpointError(InputError):
    """There are checkpoints, and none is good."""


def find_usable(checkpoints: Path) -> LatestCheckpoint:
    """The newest good checkpoint, to go on from; damaged ones are moved to a folder `refused` beside it.

    Raises:
        NoGoodCheckpointError: there are damaged ones only; training would begin at step 0.
    """
    latest = find_latest(checkpoints)
    for folder, reason in latest.refused.items():
        if not isinstance(reason, OtherVersionError):
            _move(folder, checkpoints / REFUSED)
    if latest.folder is None:
        names = sorted({*(folder.name for folder in latest.refused), *_names(checkpoints / REFUSED)})
        if names:
            reasons = "; ".join(map(str, latest.refused.values())) or f"they are in {checkpoints / REFUSED}"
            raise NoGoodCheckpointError(
                f"{checkpoints}: no good checkpoint: of {', '.join(names)}, none can be read ({reasons}); allowed: an "
                "undamaged copy put in place, or --from-scratch to train from step 0 again"
            )
    return latest


def discard(checkpoints: Path) -> None:
    """Allow training to begin at step 0 although there were checkpoints: the damaged ones count no more.

    Raises:
        InputError: there is a good one.
    """
    try:
        latest = find_usable(checkpoints)
    except NoGoodCheckpointError:
        others = find_latest(checkpoints).refused  # of another version, which stay in their place otherwise
        for folder in [*(checkpoints / REFUSED / name for name in _names(checkpoints / REFUSED)), *others]:
            _move(folder, checkpoints / DISCARDED)
        return
    if latest.folder is not None:
        raise InputError(
            f"--from-scratch: {latest.folder} is good; allowed: without it, to go on from there, or another run "
            "(--set run.name=…)"
        )


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _move(folder: Path, into: Path) -> None:
    durable.make_folder(into)
    target, number = into / folder.name, 1
    while target.exists():  # of the same step, from an earlier time
        target, number = into / f"{folder.name}-{number}", number + 1
    with suppress(FileNotFoundError):  # another process has just removed or moved it
        folder.rename(target)
    durable.sync(into)
    durable.sync(folder.parent)
