"""One rank's training state, and one training step.

    batch -> engine(objective) -> engine.backward, while all ranks' losses are gathered -> engine.step -> ema -> report

The engine's module is the objective, so whatever is trained beside the network (a learned schedule, an adaptive
lambda(t)) is sharded, averaged and checkpointed like it.

The host waits for the device once a step, and for the step before: what a step came to is read from the device while
the next one runs. Whether weights, moments and averages move is decided on the device (ClippedAdamW), where nothing
that is not finite moves any of them; only the report of it is late.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from diffusion.objective import total_loss
from diffusion.rng import Stream, counter_generator
from diffusion.time_sampling import LossMoments
from trainer.checkpoint.background import AsyncCheckpointWriter
from trainer.checkpoint.fragments import fragments_of
from trainer.checkpoint.writer import manifest_fields, prune
from trainer.config.run_config import RunConfig
from trainer.ema import snapshots
from trainer.ema.sharded import ShardedEma
from trainer.run.attempt import Fence
from trainer.run.journal import CheckpointSaved, Journal, Metrics, Record, Warned
from trainer.run.paths import RunPaths
from trainer.run.stop_request import StopRequest
from trainer.worker import spans
from trainer.worker.batches import BatchLoader
from trainer.worker.deepspeed_config import batch_shape
from trainer.worker.engine import MOMENTS, Masters, step
from trainer.worker.meters import Meters
from trainer.worker.nonfinite import HINT, NonFiniteError, require_finite
from trainer.worker.report import Report, StepResult


@dataclass(frozen=True)
class WorkerContext:
    """A worker's configuration, the run's files, the data set's folder, the device, and the attempt it belongs to."""

    config: RunConfig
    paths: RunPaths
    dataset: Path
    device: torch.device
    attempt: str


@dataclass(frozen=True)
class StepOutputs:
    """Outputs of the forward passes of one step.

    Attributes:
        losses: each rank's loss, scaled so that their mean is the loss of the global batch, and 1 where that rank was
            asked to stop; float32 [W, 2].
        row_losses: weighted loss of each of this rank's rows, float32 [R].
        observed: log-SNR, squared error and row mask of each micro-batch, for the meters.
    """

    losses: Tensor
    row_losses: Tensor
    observed: list[tuple[Tensor, Tensor, Tensor]]


@dataclass
class Worker:
    """One rank's training state.

    Attributes:
        context: configuration, paths, data, device and attempt.
        engine: DeepSpeed's engine, or a single rank's.
        masters: this rank's part of the fp32 master weights.
        ema: exponential moving averages of the masters.
        loader: loads this rank's batches.
        writer: writes checkpoints and snapshots in the background.
        dataset_fingerprint: of the data that is trained on.
        journal: the run's journal on rank 0; None on other ranks.
        fence: tells whether this attempt is still in charge.
        stop_request: watches for stop requests on rank 0; None on other ranks.
        step: training steps taken, skipped ones included.
        skipped: steps that did not change the weights.
        skips_in_a_row: number of the latest consecutive skipped steps.
        stopping: whether all ranks are to stop after the last step.
        losses_since_checkpoint: global loss of each step since the last checkpoint.
        report: that of the last step; None once it has been read.
    """

    context: WorkerContext
    engine: Any
    masters: Masters
    ema: ShardedEma
    loader: BatchLoader
    writer: AsyncCheckpointWriter
    dataset_fingerprint: str
    journal: Journal | None
    fence: Fence
    stop_request: StopRequest | None
    step: int = 0
    skipped: int = 0
    skips_in_a_row: int = 0
    stopping: bool = False
    losses_since_checkpoint: list[float] = field(default_factory=list)
    report: Report | None = None

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.context.config

    @property
    def settled(self) -> int:
        """The last step whose outcome is known."""
        return self.step - (self.report is not None)

    @property
    def is_ending(self) -> bool:
        """Whether this is the last step, as far as it is known."""
        return self.stopping or self.step == self.config.training.steps

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint follows this step."""
        return self.is_ending or self.step % self.config.run.checkpoint_every == 0

    @property
    def is_stuck(self) -> bool:
        """Whether as many steps in a row were left out as may be."""
        return self.skips_in_a_row >= self.config.training.max_skips

    def train_step(self, meters: Meters) -> None:
        """One optimizer step on the next global batch; then what the step before came to is read and recorded.

        Raises:
            NonFiniteError: the step before was not finite, and may not be skipped; what has moved since is not kept.
        """
        self.step += 1
        outputs = self._forward_backward(meters)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        with record_function(spans.OPTIMIZER):
            norm, taken = step(self.engine, torch.isfinite(outputs.losses[:, 0]).all())
        with record_function(spans.EMA):
            self.ema.update(self.step, taken)
        with record_function(spans.METRICS):
            self._report(outputs, norm, taken, meters)
        with record_function(spans.CHECKPOINT):
            if self.step % snapshots.interval(self.step, self.config.ema.snapshot_every) == 0 and not self.is_stuck:
                self.settle(meters)
                self.save_snapshot()

    def _report(self, outputs: StepOutputs, norm: Tensor, taken: Tensor, meters: Meters) -> None:
        """Send off this step's report, and record that of the step before."""
        for rows in outputs.observed:
            meters.add_rows(*rows, taken)
        logged = self.step % self.config.run.log_every == 0
        before, self.report = self.report, None
        report = Report(self.step, outputs.losses, norm, taken, meters.reduce() if logged else None)
        if before is not None:
            self._record_step(before.read(), meters)
        self.report = report
        if self.loader.plan.moments:  # the next step's times depend on this step's losses
            self._update_moments(self.loader.plan.moments, outputs.row_losses, meters)

    def settle(self, meters: Meters) -> None:
        """Wait for the last step's outcome and record it.

        Raises:
            NonFiniteError: it was not finite, and may not be skipped.
        """
        if self.report is not None:
            report, self.report = self.report, None
            self._record_step(report.read(), meters)

    def _record_step(self, result: StepResult, meters: Meters) -> None:
        """Record a step in the meters, and in the journal if a window of metrics ends with it.

        Raises:
            NonFiniteError: it was not finite, and may not be skipped.
        """
        self.stopping = self.stopping or result.stop
        if result.taken:
            self.skips_in_a_row = 0
            loss = sum(result.losses) / len(result.losses)
            self.losses_since_checkpoint.append(loss)
            meters.add_step(loss, result.norm)
        else:
            self._skip(result)
            meters.add_skip()
        if result.window:
            self.record_metrics(result.step, meters, result.window, result.time)

    def record_metrics(self, at: int, meters: Meters, window: list[float], now: float) -> None:
        """Record the metrics of the window that ends with a step, at a time."""
        metrics = meters.flush(self.config.training.global_batch_size, window, now)
        self.record(Metrics(step=at, values={"lr": self._learning_rate(at), **metrics}))

    def _learning_rate(self, at: int) -> float:
        return self.config.optim.learning_rate(at, self.config.training.steps)

    def _skip(self, result: StepResult) -> None:
        """Count a step that did not change the weights.

        Raises:
            NonFiniteError: steps may not be skipped (`training.on_nonfinite`).
        """
        if self.config.training.on_nonfinite == "stop":
            require_finite(result.losses, result.step)
            raise NonFiniteError(
                result.step,
                f"the gradient's norm over all ranks is {result.norm} though the loss is finite; "
                f"stopped before the optimizer step. {HINT}",
            )
        self.skipped += 1
        self.skips_in_a_row += 1
        bad = [rank for rank, loss in enumerate(result.losses) if not math.isfinite(loss)]
        what = f"the loss on rank {', '.join(map(str, bad))}" if bad else "the gradient"
        self.warn(f"step {result.step} skipped: {what} is not finite; {self.skipped} skipped so far", result.step)

    def _update_moments(self, moments: LossMoments, row_losses: Tensor, meters: Meters) -> None:
        """Update the loss statistics with the losses of the global batch, identically on every rank."""
        gathered = row_losses.new_empty(dist.get_world_size() * len(row_losses))
        dist.all_gather_single(gathered, row_losses)
        skipped = self.skipped
        self.settle(meters)
        if self.skipped == skipped:
            losses = gathered[: self.config.training.global_batch_size].double().cpu().numpy()
            moments.update(self.loader.plan.time_fractions(self.step)[0], losses)

    def _forward_backward(self, meters: Meters) -> StepOutputs:
        """Forward and backward over this rank's micro-batches, after the last of which the engine may step."""
        rank, world, device = dist.get_rank(), dist.get_world_size(), self.context.device
        shape, batch = batch_shape(self.config, world), self.config.training.global_batch_size
        torch.manual_seed(int(counter_generator(self.config.seed, Stream.DROPOUT, self.step, rank).integers(2**63)))
        since = time.perf_counter()
        with record_function(spans.WAIT):
            loaded = self.loader.batch(self.step, rank * shape.rows, shape.rows)
        meters.add_waited(time.perf_counter() - since)
        rows, x_0 = loaded.rows, loaded.x_0
        local_loss, row_losses = torch.zeros(1, device=device), list[Tensor]()
        observed, gathered, gathering = list[tuple[Tensor, Tensor, Tensor]](), torch.empty(0), None
        for first in range(0, shape.rows, shape.micro_rows):
            part = slice(first, first + shape.micro_rows)
            t, row_mask = rows.t[part], rows.row_mask[part].to(device, non_blocking=True)
            label = None if loaded.label is None else loaded.label[part].to(device, non_blocking=True)
            with record_function(spans.FORWARD):
                losses, epsilon_mse = self.engine(
                    x_0[part].to(device, non_blocking=True), t, rows.eps[part].to(device, non_blocking=True), label
                )
                importance = rows.importance[part].to(device, non_blocking=True)
                loss = total_loss(losses, row_mask * importance, batch, world)
                local_loss += loss.detach()
            last = first + shape.micro_rows >= shape.rows
            if last:
                gathered, gathering = self._gather_losses(local_loss)
            # DeepSpeed divides by the number of micro-batches; total_loss is a share of the sum already
            with record_function(spans.BACKWARD):
                self.engine.backward(loss * shape.micro_batches)
            row_losses.append(losses.detach())
            with torch.no_grad():
                log_snr = self.loader.plan.process.log_snr(t).cpu()
            observed.append((log_snr, epsilon_mse, row_mask))
            if not last:
                self.engine.step()  # counts the micro-batch; weights move on the last one only
        if gathering:
            gathering.wait()
        return StepOutputs(gathered, torch.cat(row_losses), observed)

    def _gather_losses(self, local_loss: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Gather every rank's loss, and whether it was asked to stop, float32 [W, 2]; None is there at once."""
        stop_wanted = float(self.stop_request is not None and self.stop_request.reason is not None)
        mine = torch.cat([local_loss, local_loss.new_full((1,), stop_wanted)])
        world = dist.get_world_size()
        if world == 1:
            return mine.view(1, 2), None
        gathered = mine.new_empty(2 * world)
        return gathered.view(world, 2), dist.all_gather_single(gathered, mine, async_op=True)

    def record(self, record: Record) -> None:
        """Append to the journal on rank 0, unless a newer attempt is in charge."""
        if self.journal and self.fence.holds():
            self.journal.append(record)

    def warn(self, text: str, at: int) -> None:
        """Append a warning about a step to the journal."""
        self.record(Warned(step=at, text=text))

    def save_checkpoint(self) -> None:
        """Start a checkpoint of a settled step on all ranks; returns once the state is copied to memory.

        While steps are being skipped none is written, since its weights may be the cause, except after the last step.

        Raises:
            NonFiniteError: a weight is NaN or infinite; no checkpoint is written.
        """
        ending = self.step == self.config.training.steps
        if self.skipped == self.step or (self.skips_in_a_row and not ending):
            return
        finite = torch.tensor(
            [float(all(bool(torch.isfinite(flat).all()) for flat in self.masters.flats))], device=self.context.device
        )
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if not finite:
            raise NonFiniteError(self.step, "a weight is NaN or infinite; no checkpoint was written")
        began, at, folder = time.monotonic(), self.step, self.context.paths.checkpoints
        aligned = {"param": self.masters.flats, **self.ema.tracks}
        aligned |= {kind: self.masters.moments(kind) for kind in MOMENTS}
        moments = self.loader.plan.moments
        losses = self.losses_since_checkpoint
        loss = sum(losses) / len(losses) if losses else None
        losses.clear()
        manifest = self._manifest(loss) | {
            "loss_moments": {"sums": moments.sums.tolist(), "counts": moments.counts.tolist()} if moments else None
        }
        fragments = fragments_of(self.masters.fragments, aligned)

        def done() -> None:
            if self.journal and self.fence.holds():
                prune(folder, self.config.run.keep_checkpoints)
                seconds = round(time.monotonic() - began, 3)
                self.journal.append(CheckpointSaved(step=at, stalled=stalled, seconds=seconds))

        self.writer.make_room()
        stalled = round(time.monotonic() - began, 3)
        self.writer.save(folder, fragments, manifest, self.fence, done, self.journal)

    def save_snapshot(self) -> None:
        """Start a snapshot of the EMA tracks of a settled step on all ranks, if one is due at this step."""
        at, folder, every = self.step, self.context.paths.ema, self.config.ema.snapshot_every
        if at % snapshots.interval(at, every):
            return

        def done() -> None:
            if self.journal and self.fence.holds():
                snapshots.prune(folder, at, every)

        fragments = fragments_of(self.masters.fragments, self.ema.tracks)
        self.writer.save(folder, fragments, self._manifest(), self.fence, done)

    def _manifest(self, loss: float | None = None) -> dict[str, Any]:
        shapes, image_shape = self.masters.shapes(), self.loader.plan.image_shape
        return manifest_fields(
            self.config, shapes, image_shape, self.step, self.skipped, loss, self.dataset_fingerprint
        )

    def close(self) -> None:
        """Wait for unfinished checkpoints, and end the threads."""
        try:
            self.writer.close()
        finally:
            self.loader.close()
            if self.stop_request:
                self.stop_request.close()
