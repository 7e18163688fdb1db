"""One rank's training state, and one training step.

    batch -> engine(objective) -> all ranks agree the loss is finite -> engine.backward -> engine.step -> ema

The engine's module is the objective, so whatever is trained beside the network (a learned schedule, an adaptive
lambda(t)) is sharded, averaged and checkpointed like it.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

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
from trainer.run.journal import CheckpointSaved, Journal, Record, Warned
from trainer.run.paths import RunPaths
from trainer.run.stop_request import StopRequest
from trainer.worker.batches import BatchLoader
from trainer.worker.deepspeed_config import batch_shape
from trainer.worker.engine import MOMENTS, Masters, step
from trainer.worker.meters import Meters

HINT = "A lower optim.lr or optim.max_grad_norm usually helps"


class NonFiniteError(RuntimeError):
    """A loss, gradient or weight is NaN or infinite; raised on every rank, before any weight has changed."""


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
    """Outputs of the forward passes of one step, on this rank.

    Attributes:
        losses: each rank's loss, scaled so that their mean is the loss of the global batch.
        row_losses: weighted loss of each of this rank's rows, float32 [R].
        observed: log-SNR, squared error and row mask of each micro-batch, for the meters.
    """

    losses: list[float]
    row_losses: Tensor
    observed: list[tuple[Tensor, Tensor, Tensor]]


@dataclass
class Worker:
    """One rank's training state.

    Attributes:
        context: configuration, paths, data, device and attempt.
        engine: the DeepSpeed engine.
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

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.context.config

    @property
    def lr(self) -> float:
        """The learning rate of the step at hand."""
        return self.config.optim.learning_rate(self.step)

    def train_step(self, meters: Meters) -> None:
        """One optimizer step on the next global batch; a non-finite step is skipped where that is allowed.

        Raises:
            NonFiniteError: some rank's loss, or the gradient, is NaN or infinite; no weight has changed.
        """
        self.step += 1
        outputs = self._forward_backward()
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.lr
        norm = step(self.engine, self.config.parallel.zero_stage)
        taken = math.isfinite(norm)
        if not taken:
            self._skip(outputs.losses, norm)
            meters.add_skip()
        else:
            self._record_step(outputs, norm, meters)
        self.ema.update(self.step)
        self.save_snapshot()

    def _record_step(self, outputs: StepOutputs, norm: float, meters: Meters) -> None:
        """Record a finite step in the meters and in the loss statistics for importance sampling of t."""
        self.skips_in_a_row = 0
        for rows in outputs.observed:
            meters.add_rows(*rows)
        if self.loader.plan.moments:
            self._update_moments(self.loader.plan.moments, outputs.row_losses)
        loss = float(sum(outputs.losses)) / len(outputs.losses)
        self.losses_since_checkpoint.append(loss)
        meters.add_step(loss, norm)

    def _skip(self, losses: list[float], norm: float) -> None:
        """Count a step that did not change the weights.

        Raises:
            NonFiniteError: steps may not be skipped (`training.on_nonfinite`).
        """
        if self.config.training.on_nonfinite == "stop":
            require_finite(losses, self.step)
            raise NonFiniteError(
                f"step {self.step}: the gradient's norm over all ranks is {norm} though the loss is finite; "
                f"stopped before the optimizer step. {HINT}"
            )
        self.skipped += 1
        self.skips_in_a_row += 1
        bad = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
        what = f"the loss on rank {', '.join(map(str, bad))}" if bad else "the gradient"
        self.warn(f"step {self.step} skipped: {what} is not finite; {self.skipped} skipped so far")

    def _update_moments(self, moments: LossMoments, row_losses: Tensor) -> None:
        """Update the loss statistics with the losses of the global batch, identically on every rank."""
        gathered = [torch.zeros_like(row_losses) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, row_losses)
        batch = self.config.training.global_batch_size
        losses = torch.cat(gathered)[:batch].double().cpu().numpy()
        moments.update(self.loader.plan.time_fractions(self.step)[0], losses)

    def _forward_backward(self) -> StepOutputs:
        """Forward and backward over this rank's micro-batches, after the last of which the engine may step.

        Raises:
            NonFiniteError: some rank's loss is NaN or infinite, and it may not be skipped.
        """
        rank, world, device = dist.get_rank(), dist.get_world_size(), self.context.device
        shape, batch = batch_shape(self.config, world), self.config.training.global_batch_size
        torch.manual_seed(int(counter_generator(self.config.seed, Stream.DROPOUT, self.step, rank).integers(2**63)))
        loaded = self.loader.batch(self.step, rank * shape.rows, shape.rows)
        rows, x_0 = loaded.rows, loaded.x_0
        local_loss, row_losses = torch.zeros(1, device=device), list[Tensor]()
        observed, agreed = list[tuple[Tensor, Tensor, Tensor]](), list[float]()
        for first in range(0, shape.rows, shape.micro_rows):
            part = slice(first, first + shape.micro_rows)
            t, row_mask = rows.t[part], rows.row_mask[part].to(device)
            label = None if loaded.label is None else loaded.label[part].to(device)
            losses, epsilon_mse = self.engine(
                x_0[part].to(device, non_blocking=True), t, rows.eps[part].to(device, non_blocking=True), label
            )
            loss = total_loss(losses, row_mask * rows.importance[part].to(device), batch, world)
            local_loss += loss.detach()
            last = first + shape.micro_rows >= shape.rows
            if last:
                agreed = self._gather_losses(local_loss)
                if not all(map(math.isfinite, agreed)):
                    loss = loss * math.nan  # on every rank, so that the gradient of none is finite and no step is taken
            # DeepSpeed divides by the number of micro-batches; total_loss is a share of the sum already
            self.engine.backward(loss * shape.micro_batches)
            row_losses.append(losses.detach())
            with torch.no_grad():
                log_snr = self.loader.plan.process.log_snr(t).cpu()
            observed.append((log_snr, epsilon_mse, row_mask))
            if not last:
                self.engine.step()  # counts the micro-batch; weights move on the last one only
        return StepOutputs(agreed, torch.cat(row_losses), observed)

    def _gather_losses(self, local_loss: Tensor) -> list[float]:
        """Gather every rank's loss, together with rank 0's decision whether to stop after this step.

        Raises:
            NonFiniteError: a loss is NaN or infinite, and steps may not be skipped.
        """
        stop_wanted = float(self.stop_request is not None and self.stop_request.reason is not None)
        mine = torch.cat([local_loss, local_loss.new_tensor([stop_wanted])])
        gathered = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine)
        self.stopping = bool(gathered[0][1])
        losses = [float(loss) for loss, _ in gathered]
        if self.config.training.on_nonfinite == "stop":
            require_finite(losses, self.step)
        return losses

    def record(self, record: Record) -> None:
        """Append to the journal on rank 0, unless a newer attempt is in charge."""
        if self.journal and self.fence.holds():
            self.journal.append(record)

    def warn(self, text: str) -> None:
        """Append a warning about the current step to the journal."""
        self.record(Warned(step=self.step, text=text))

    def save_checkpoint(self) -> None:
        """Start a checkpoint on all ranks; returns once the state is copied to memory.

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
            raise NonFiniteError(f"step {self.step}: a weight is NaN or infinite; no checkpoint was written")
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
        """Start a snapshot of the EMA tracks on all ranks, if one is due at this step."""
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


def require_finite(losses: list[float], step: int) -> None:
    """Raise if any rank's loss is NaN or infinite.

    Args:
        losses: one loss per rank.
        step: the current step, for the message.

    Raises:
        NonFiniteError: naming the step and the ranks.
    """
    bad = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
    if bad:
        ranks = ", ".join(str(rank) for rank in bad)
        raise NonFiniteError(
            f"step {step}: the loss is {losses[bad[0]]} on rank {ranks}; stopped before the optimizer step. {HINT}"
        )
