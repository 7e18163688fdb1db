"""The driver of one run: its lock, its data and where it goes on from, then its parts (parts.py).

It may be killed at any time: the same command resumes where it stopped.
"""

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffusion.command import printable
from diffusion.private_folder import write_private
from trainer.checkpoint.damaged import discard, find_usable
from trainer.checkpoint.reader import LatestCheckpoint, find_latest
from trainer.config.run_config import RunConfig
from trainer.data.dataset import Dataset
from trainer.data.prepare import prepare
from trainer.driver.data_checks import check_data
from trainer.driver.disk import give_back
from trainer.driver.heartbeat import Heartbeat, queue_url
from trainer.driver.parts import Driver, evaluated_steps
from trainer.driver.progress import ProgressView
from trainer.ema import snapshots
from trainer.errors import ClusterLostError, InputError, RunFailedError, last_line
from trainer.evaluate.extractors.dimensions import left_out
from trainer.run import identity
from trainer.run.journal import Initialised, Journal, Record, Warned
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
        give_back(resolved.config, paths)
        print(f"{paths.root.name} is done: {paths.results}")
        print("to start another: change the configuration, e.g. --set seed=1, or name it with --set run.name=…")
        return 0
    try:
        complete(config, identity.lock_timeout(), stop, queue_url(), from_scratch)
    except ClusterLostError as error:
        print(f"failed: {printable(str(error))}; {_kept(paths, stop.at_once)}; the same command goes on")
        return EXIT_CODE
    except RunFailedError as error:
        print(f"failed: {printable(str(error))}")
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
        evaluated = 0 if from_scratch else stop.call(lambda: evaluated_steps(paths))
        latest = stop.call(lambda: _find_usable(config, paths, from_scratch, evaluated))
        reached = max(latest.step, evaluated)
        told = stop.call(lambda: list(_to_tell(config, paths, dataset, latest, reached)))
        identity.register_name(config, paths, dataset.info.fingerprint, dataset.info.class_names)
        journal = Journal(paths.journal)
        with ProgressView(journal) as view:
            view.print_line(f"run {config.run.name}  (method {config.method_sha256[:8]})  in {paths.root}")
            for note in resolved.notes:
                view.print_line(f"  note: {note}")
            info = dataset.info
            view.print_line(
                f"data {info.source}: {info.train} to train on, {info.heldout} held out  ({info.fingerprint[:8]})"
            )
            for each in [*([Warned(text=undated)] if undated else []), *told]:
                if isinstance(each, str):
                    view.print_line(f"  {each}")
                else:
                    journal.append(each)
            try:
                with heartbeats(queue, config, journal, view, stop):
                    return Driver(config, paths, dataset, journal, view, stop, reached, evaluated).run()
            except RunFailedError:
                raise
            except Exception as error:
                write_private(paths.error, traceback.format_exc())
                reason = f"{type(error).__name__}: {last_line(error)}  (all of it: {paths.error})"
                raise RunFailedError(reason) from error


def _find_usable(config: RunConfig, paths: RunPaths, from_scratch: bool, evaluated: int) -> LatestCheckpoint:
    """The checkpoint that the run goes on from.

    Args:
        config: the run's configuration.
        paths: its files.
        from_scratch: whether to begin at step 0 where there are damaged checkpoints only.
        evaluated: steps of the package that the run's results are of; 0 without.

    Raises:
        InputError: no checkpoint is good, or one is and the run is to begin from scratch; or those of its last steps
            were not kept.
    """
    if from_scratch:
        discard(paths.checkpoints)
        snapshots.forget(paths.ema, 0)
    latest = find_usable(paths.checkpoints)
    if latest.step < evaluated < config.training.steps:
        raise InputError(
            f"training.steps = {config.training.steps}: {paths.root.name} has trained {evaluated} steps, and has no "
            f"checkpoint of them any more (run.keep = {config.run.keep}); allowed: {evaluated}, another run that "
            "begins with its weights (training.init_from), or --from-scratch"
        )
    return latest


def _to_tell(
    config: RunConfig, paths: RunPaths, dataset: Dataset, latest: LatestCheckpoint, reached: int
) -> Iterator[str | Record]:
    """What the user should know before training begins: lines, and records of the journal, which are shown too.

    Raises:
        InputError: what it begins with cannot be had, or there is too little room for it.
    """
    for reason in latest.refused.values():
        yield Warned(text=f"checkpoint set aside: {reason}")
    if reached < config.training.steps:
        yield from _space(config, paths, dataset)
    if reached == 0 and config.training.init_sha256:
        from trainer.driver.initial import prepare_initial

        found = prepare_initial(config, paths, dataset.info.image_shape).describe()
        source = f"{config.training.init_from} ({config.training.init_sha256[:8]})"
        yield Initialised(text=f"begins with {source}: {found}")
    if note := left_out(config.evaluation, dataset.info.classes):
        yield f"note: {note}"


def _space(config: RunConfig, paths: RunPaths, dataset: Dataset) -> Iterator[str | Record]:
    """What the run takes of its storage, and what is free.

    Raises:
        InputError: there is too little room for it to begin.
    """
    from trainer.driver.disk import check_space, estimate
    from trainer.worker.objective import build_objective

    objective = build_objective(config, dataset.info.image_shape, device="meta")
    parameters = sum(each.numel() for each in objective.parameters())
    line, warning = check_space(estimate(config, dataset.info, parameters), config, paths, parameters)
    yield line
    if warning:
        yield Warned(text=warning)


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
    heartbeat = Heartbeat(queue, config, journal, stop.ask, view.print_line, lambda: view.doing)
    try:
        yield
    finally:
        heartbeat.close()
