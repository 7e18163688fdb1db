"""The driver of one run: its lock, its data and where it goes on from, then its parts (parts.py).

It may be killed at any time: the same command resumes where it stopped.
"""

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.checkpoint.damaged import discard, find_usable
from trainer.checkpoint.reader import LatestCheckpoint, find_latest
from trainer.config.run_config import RunConfig
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.driver.data_checks import check_data
from trainer.driver.heartbeat import Heartbeat, queue_url
from trainer.driver.parts import Driver
from trainer.driver.progress import ProgressView
from trainer.ema import snapshots
from trainer.errors import ClusterLostError, InputError, RunFailedError, last_line
from trainer.evaluate.extractors.dimensions import left_out
from trainer.run import identity
from trainer.run.journal import Initialised, Journal, Warned
from trainer.run.manifest import CheckpointError, newest_whole
from trainer.run.paths import RunPaths
from trainer.run.summary import RunSummary
from trainer.runtime.ray_cluster import check_ray_address
from trainer.runtime.stop import EXIT_CODE, Preempted, Stop

VERIFY_DEADLINE_S = 1.0


def execute(config: RunConfig, stop: Stop, from_scratch: bool = False) -> int:
    """Run the command: carry the run to its end and print the outcome; returns the exit code.

    Args:
        config: the command's configuration.
        stop: requests to stop.
        from_scratch: whether to begin at step 0 where there are damaged checkpoints only.

    Raises:
        InputError: bad input that only now shows, such as an unreadable data file; nothing has been started.
    """
    resolved = stop.call(lambda: identity.resolve_run(config))
    paths = resolved.paths
    if resolved.state == "done":
        print(f"{paths.root.name} is done: {paths.results}")
        print("to start another: change the configuration, e.g. --set seed=1, or name it with --set run.name=…")
        return 0
    try:
        complete(config, identity.lock_timeout(), stop, queue_url(), from_scratch)
    except ClusterLostError as error:
        print(f"failed: {error}; {_kept(paths, stop.at_once)}; the same command goes on")
        return EXIT_CODE
    except RunFailedError as error:
        print(f"failed: {error}")
        return 1
    except Preempted as reason:
        print(f"preempted ({reason}): {_kept(paths, stop.at_once)}; the same command goes on")
        return EXIT_CODE
    return 0


def _kept(paths: RunPaths, at_once: bool) -> str:
    """Which step the same command would go on from; a large checkpoint is not read in full for that."""
    steps = list[int]()

    def verify() -> None:
        with suppress(OSError, CheckpointError):
            steps.append(find_latest(paths.checkpoints).step)

    if not at_once:
        verifying = threading.Thread(target=verify, daemon=True)
        verifying.start()
        verifying.join(VERIFY_DEADLINE_S)
    step = steps[0] if steps else newest_whole(paths.checkpoints)
    return f"the last checkpoint is of step {step}" if step else "there is no checkpoint yet"


def complete(
    config: RunConfig,
    lock_timeout_s: float = 0.0,
    stop: Stop | None = None,
    queue: str | None = None,
    from_scratch: bool = False,
) -> RunSummary:
    """Carry the run to its end from its current state; returns its summary.

    Args:
        config: the command's configuration; a run that exists goes on with its stored one.
        lock_timeout_s: seconds to wait for another process that is working on the run.
        stop: requests to stop; None if there can be none.
        queue: URL that heartbeats are sent to; None sends none.
        from_scratch: whether to begin at step 0 where there are damaged checkpoints only.

    Raises:
        Preempted: the driver was asked to stop.
        InputError: bad input that only now shows, such as an unreadable data file; nothing has been started.
        ClusterLostError: the cluster is gone.
        RunFailedError: the run cannot go on; the traceback of an unexpected error is kept in `RunPaths.error`.
    """
    stop = stop or Stop()
    paths = stop.call(lambda: identity.resolve_run(config)).paths
    with identity.locked(paths, lock_timeout_s, stop.check):
        resolved = stop.call(lambda: identity.resolve_run(config))  # another process may have worked on it until now
        config, paths = resolved.config, resolved.paths
        if resolved.state == "done" and (summary := identity.read_summary(paths)):
            return summary
        dataset = stop.call(lambda: _prepare_data(config))
        undated = identity.check_dataset(config, paths, dataset.info.fingerprint)
        latest = stop.call(lambda: _find_usable(paths, from_scratch))
        initial = stop.call(lambda: _initial(config, paths, dataset)) if latest.step == 0 else None
        identity.register_name(config, paths, dataset.info.fingerprint, dataset.info.class_names)
        journal = Journal(paths.journal)
        with ProgressView(journal) as view:
            view.print_line(f"run {config.run.name}  (method {config.method_sha256[:8]})  in {paths.root}")
            for note in resolved.notes:
                view.print_line(f"  note: {note}")
            warnings = [f"checkpoint set aside: {reason}" for reason in latest.refused.values()]
            for text in [*([undated] if undated else []), *warnings]:
                journal.append(Warned(text=text))
            info = dataset.info
            view.print_line(
                f"data {info.source}: {info.train} to train on, {info.heldout} held out  ({info.fingerprint[:8]})"
            )
            if initial:
                text = f"begins with {config.training.init_from} ({str(config.training.init_sha256)[:8]}): {initial}"
                journal.append(Initialised(text=text))
            if note := left_out(config.evaluation, info.classes):
                view.print_line(f"  note: {note}")
            try:
                with heartbeats(queue, config, journal, view, stop):
                    return Driver(config, paths, dataset, journal, view, stop, latest.step).run()
            except RunFailedError:
                raise
            except Exception as error:
                paths.error.write_text(traceback.format_exc())
                reason = f"{type(error).__name__}: {last_line(error)}  (all of it: {paths.error})"
                raise RunFailedError(reason) from error


def _find_usable(paths: RunPaths, from_scratch: bool) -> LatestCheckpoint:
    """The checkpoint that the run goes on from.

    Raises:
        InputError: no checkpoint is good, or one is and the run is to begin from scratch.
    """
    if from_scratch:
        discard(paths.checkpoints)
        snapshots.forget(paths.ema, 0)
    return find_usable(paths.checkpoints)


def _initial(config: RunConfig, paths: RunPaths, dataset: Dataset) -> str | None:
    """What a run takes from the package that it begins with, in one line; None if it begins with none."""
    if config.training.init_sha256 is None:
        return None
    from trainer.driver.initial import prepare_initial

    return prepare_initial(config, paths, dataset.info.image_shape).describe()


def _prepare_data(config: RunConfig) -> Dataset:
    check_ray_address()
    try:
        dataset = prepare(config.data, Path(config.run.storage or ""))
    except (InputError, RunFailedError):
        raise
    except Exception as error:
        from trainer.runtime.cluster_watch import is_loss

        kind = ClusterLostError if is_loss(error) else RunFailedError
        raise kind(f"preparing the data: {last_line(error)}") from error
    check_data(config, dataset)
    return dataset


@contextmanager
def heartbeats(
    queue: str | None, config: RunConfig, journal: Journal, view: ProgressView, stop: Stop
) -> Iterator[None]:
    """Heartbeats to `queue`, where there is one; its answers can ask this process to stop."""
    if queue is None:
        yield
        return
    heartbeat = Heartbeat(queue, config, journal, stop.ask, view.print_line)
    try:
        yield
    finally:
        heartbeat.close()
