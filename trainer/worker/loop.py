"""The training loop that every Ray Train worker runs.

Everything a step depends on is a function of (config, step) or stored in the checkpoint, so resuming means loading the
newest complete checkpoint and going on. Only rank 0 writes to the journal. The step itself is in step.py.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from diffusion.config import ImportanceTime
from diffusion.device import full_precision
from diffusion.time_sampling import LossMoments
from trainer.checkpoint.background import AsyncCheckpointWriter
from trainer.checkpoint.damaged import NoGoodCheckpointError, find_usable
from trainer.checkpoint.reader import Checkpoint
from trainer.config.run_config import RunConfig
from trainer.data.dataset import open_dataset
from trainer.ema import snapshots
from trainer.ema.sharded import ShardedEma
from trainer.run.attempt import Fence
from trainer.run.journal import Acknowledged, Journal, NonFinite, Started, Stopped, Warned
from trainer.run.paths import RunPaths
from trainer.run.stop_request import StopRequest
from trainer.runtime.device import require_compiler
from trainer.worker.batch_plan import BatchPlan
from trainer.worker.batches import BatchLoader
from trainer.worker.engine import Masters, initialize
from trainer.worker.flops import best_flops, flops_per_image
from trainer.worker.initial import load_initial
from trainer.worker.meters import Meters
from trainer.worker.nonfinite import HINT, NonFiniteError
from trainer.worker.objective import build_objective
from trainer.worker.step import Worker, WorkerContext
from trainer.worker.watchdog import Watchdog


def start_worker(context: WorkerContext) -> Worker:
    """Build this rank's training state, from the newest complete checkpoint if there is one; collective."""
    config, paths = context.config, context.paths
    journal = Journal(paths.journal) if dist.get_rank() == 0 else None
    dataset = open_dataset(context.dataset)
    torch.manual_seed(config.seed)
    objective = build_objective(config, dataset.info.image_shape)
    process = objective.denoiser.process
    resumed = _agree_on_checkpoint(paths, journal)
    if resumed:
        resumed.check_dataset(dataset.info.fingerprint)
        objective.load_state_dict(resumed.tensors("param"))
    elif config.training.init_sha256:
        load_initial(objective, paths.initial)
    full_precision()
    if config.parallel.compile:
        require_compiler(context.device)
    engine = initialize(objective.to(context.device), config, context.device)
    masters = Masters(engine)
    ema = ShardedEma(masters.flats, config.ema.tracks)
    if resumed:
        masters.restore_moments(resumed.optimizer_steps, resumed.read)
        for kind, flats in ema.tracks.items():
            for fragment in masters.fragments:
                fragment.of(flats).copy_(resumed.read(kind, fragment.name, fragment.offset, fragment.numel))
    plan = BatchPlan(
        config.seed,
        dataset.info.train,
        config.training,
        process,
        config.objective,
        dataset.info.image_shape,
        restored_moments(config, resumed),
    )
    labels = torch.from_numpy(dataset.labels("train")) if config.network.classes else None
    return Worker(
        context=context,
        engine=engine,
        masters=masters,
        ema=ema,
        loader=BatchLoader(plan, dataset.images("train"), labels, config.network.classes, context.device),
        writer=AsyncCheckpointWriter(),
        dataset_fingerprint=dataset.info.fingerprint,
        journal=journal,
        fence=Fence(paths.attempt, context.attempt),
        stop_request=_watch_requests(context, journal) if journal else None,
        step=resumed.step if resumed else 0,
        skipped=resumed.step - resumed.optimizer_steps if resumed else 0,
    )


def _watch_requests(context: WorkerContext, journal: Journal) -> StopRequest:
    """Watch for requests to stop; each is acknowledged in the journal, which the driver reads."""
    return StopRequest(context.paths.preempt, context.attempt, lambda reason: journal.append(Acknowledged(text=reason)))


def restored_moments(config: RunConfig, resumed: Checkpoint | None) -> LossMoments | None:
    """The loss statistics for importance sampling of t, from the checkpoint; None if t is sampled otherwise."""
    if not isinstance(config.objective.time_sampling, ImportanceTime):
        return None
    moments = LossMoments(config.objective.time_sampling)
    if resumed:
        moments.sums, moments.counts = (np.array(resumed.loss_moments[name]) for name in ("sums", "counts"))
    return moments


def _agree_on_checkpoint(paths: RunPaths, journal: Journal | None) -> Checkpoint | None:
    """Rank 0 finds the newest good checkpoint and tells the other ranks.

    Raises:
        NoGoodCheckpointError: on every rank, where there are damaged ones only.
    """
    choice: list[Path | NoGoodCheckpointError | None] = [None]
    if journal:
        try:
            latest = find_usable(paths.checkpoints)
            for reason in latest.refused.values():
                journal.append(Warned(text=f"checkpoint skipped: {reason}"))
            choice = [latest.folder]
        except NoGoodCheckpointError as error:
            choice = [error]
    dist.broadcast_object_list(choice, src=0)
    [chosen] = choice
    if isinstance(chosen, NoGoodCheckpointError):
        raise chosen
    return Checkpoint(chosen) if chosen else None


def run(context: WorkerContext, report: Callable[[dict[str, Any]], None]) -> None:
    """Train until `training.steps`, a stop request or a non-finite loss; the journal says which.

    Args:
        context: the worker's configuration, paths, data, device and attempt.
        report: called with metrics on every rank at every checkpoint.
    """
    worker = start_worker(context)
    last = context.config.training.steps
    meters = Meters(context.device, _images_per_second_at_best(worker) if worker.journal else None)
    worker.record(Started(step=worker.step, steps=last, world_size=dist.get_world_size()))
    returned_to: int | None = None
    settings, stacks = context.config.run, context.paths.stacks(context.attempt)
    watchdog = Watchdog(stacks / f"rank-{dist.get_rank()}.txt", settings.hang_floor, settings.hang_medians)
    try:
        while worker.step < last and not worker.stopping:
            worker.train_step(meters)
            if worker.is_due and not worker.is_stuck:
                worker.settle(meters)
            if worker.is_stuck:
                watchdog.pause()
                worker, returned_to = rolled_back(worker, returned_to)
                meters.forget_rows()
            if worker.is_due:
                _save(worker, meters, report)
            watchdog.step_ended(writing=worker.writer.is_writing)
        watchdog.close()
        worker.close()
        if worker.stopping:
            worker.record(
                Stopped(step=worker.step, text=worker.stop_request.reason or "" if worker.stop_request else "")
            )
    except NonFiniteError as error:
        worker.close()
        worker.record(NonFinite(step=error.step, text=str(error)))
    finally:
        watchdog.close()


def _save(worker: Worker, meters: Meters, report: Callable[[dict[str, Any]], None]) -> None:
    """Start a checkpoint, before which the metrics of a window that the run's end cuts short are recorded."""
    if worker.is_ending and worker.step % worker.config.run.log_every:
        worker.record_metrics(worker.step, meters, meters.reduce().tolist(), time.perf_counter())
    worker.save_checkpoint()
    if not worker.stopping:  # whoever asked to stop may not be listening
        report({"step": worker.step, "loss": meters.last_loss})


def _images_per_second_at_best(worker: Worker) -> float | None:
    """What `mfu` is a share of: images/s of all ranks at the best of this one's device; None if there is no room."""
    config, plan = worker.config, worker.loader.plan
    flops = flops_per_image(config.network, plan.image_shape, plan.process.reverse_variance == "learned")
    try:
        best = best_flops(worker.context.device, config.training.precision)
    except torch.OutOfMemoryError:  # beside a model that leaves no room
        return None
    return best * dist.get_world_size() / flops


def rolled_back(worker: Worker, returned_to: int | None) -> tuple[Worker, int]:
    """Go back to the weights of the last good checkpoint, and go on with the batches after the current step.

    The batches between the checkpoint and the last step that was skipped are not used again.

    Args:
        worker: the worker that skipped too many steps in a row, and may have taken one more before it knew.
        returned_to: step of the checkpoint that the previous rollback went back to; None at the first rollback.

    Returns:
        The worker to go on with, and the checkpoint's step.

    Raises:
        NonFiniteError: there is no checkpoint, or no newer one since the previous rollback.
    """
    worker.close()
    worker.engine.destroy()
    fresh = start_worker(worker.context)
    restored, skips, at = fresh.step, worker.skips_in_a_row, worker.settled
    if restored == 0 or restored == returned_to:
        fresh.close()
        since = f"again, with the weights of step {restored}" if restored else "before the first checkpoint"
        raise NonFiniteError(at, f"{skips} steps in a row were not finite, {since}; gave up. {HINT}")
    if fresh.journal:
        snapshots.forget(worker.context.paths.ema, restored)
    for skipped_step in range(restored + 1, at + 1):
        fresh.step, fresh.skipped = skipped_step, fresh.skipped + 1
        fresh.save_snapshot()
    fresh.warn(f"step {at}: {skips} skipped in a row; going on with the weights of step {restored}", at)
    return fresh, restored
