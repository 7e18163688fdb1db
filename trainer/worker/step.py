"""One rank's training state, and one step of it.

    draws -> engine(objective) -> all ranks agree the loss is finite -> engine.backward -> engine.step -> ema

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
from trainer.worker.batches import Feed
from trainer.worker.deepspeed_config import batch_shape
from trainer.worker.engine import MOMENTS, Masters, step
from trainer.worker.meters import Meters

HINT = "A lower optim.lr or optim.max_grad_norm usually helps"


class NonFiniteError(RuntimeError):
    """A loss or weight that is NaN or infinite; raised on every rank alike, before anything is spoiled."""


@dataclass(frozen=True)
class Place:
    """Where a worker is: what to train, where its files are, on which device, and for which attempt."""

    config: RunConfig
    paths: RunPaths
    dataset: Path
    device: torch.device
    attempt: str


@dataclass(frozen=True)
class Passed:
    """What the forward passes of one step leave behind, on this rank.

    Attributes:
        losses: every rank's share of the loss.
        row_losses: the weighted loss of each of this rank's rows, float32 [R].
        observed: for the meters: log-SNR, squared error and weight of the rows of each micro-batch.
    """

    losses: list[float]
    row_losses: Tensor
    observed: list[tuple[Tensor, Tensor, Tensor]]


@dataclass
class Worker:
    """One rank's training state.

    Attributes:
        place: what it trains and where.
        engine: DeepSpeed's.
        masters: this rank's part of the weights.
        ema: their average.
        feed: this rank's batches.
        writer: of checkpoints.
        journal: on rank 0.
        fence: of this attempt.
        stop_request: on rank 0.
        step: batches used.
        skipped: of these, how many moved no weight.
        skips_in_a_row: how many of the latest did not.
        stopping: whether all ranks are to stop, as of the last step.
        window: losses since the last checkpoint.
    """

    place: Place
    engine: Any
    masters: Masters
    ema: ShardedEma
    feed: Feed
    writer: AsyncCheckpointWriter
    journal: Journal | None
    fence: Fence
    stop_request: StopRequest | None
    step: int = 0
    skipped: int = 0
    skips_in_a_row: int = 0
    stopping: bool = False
    window: list[float] = field(default_factory=list)

    @property
    def config(self) -> RunConfig:
        """The run's."""
        return self.place.config

    @property
    def lr(self) -> float:
        """The learning rate of the step at hand: linear warm-up, then constant."""
        return self.config.optim.lr * min(1.0, self.step / max(1, self.config.optim.warmup_steps))

    def train_step(self, meters: Meters) -> None:
        """One optimizer step on the next global batch, or none where it is not finite and may be skipped.

        Raises:
            NonFiniteError: some rank's loss, or the gradient, is NaN or infinite; no weight has changed.
        """
        self.step += 1
        passed = self._pass()
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.lr
        norm = step(self.engine, self.config.parallel.zero_stage)
        taken = math.isfinite(norm)
        if not taken:
            self._skip(passed.losses, norm)
            meters.add_skip()
        else:
            self._take_in(passed, norm, meters)
        self.ema.update(self.step)
        self.save_snapshot()

    def _take_in(self, passed: Passed, norm: float, meters: Meters) -> None:
        """What a finite step leaves in the meters and in the statistics that t is drawn by."""
        self.skips_in_a_row = 0
        for rows in passed.observed:
            meters.add_rows(*rows)
        if self.feed.draws.moments:
            self._update_moments(self.feed.draws.moments, passed.row_losses)
        loss = float(sum(passed.losses)) / len(passed.losses)
        self.window.append(loss)
        meters.add_step(loss, norm)

    def _skip(self, losses: list[float], norm: float) -> None:
        """Count a step that moved no weight.

        Raises:
            NonFiniteError: where a step may not be skipped.
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
        """Take in the losses of the global batch, the same on every rank."""
        gathered = [torch.zeros_like(row_losses) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, row_losses)
        batch = self.config.training.global_batch_size
        losses = torch.cat(gathered)[:batch].double().cpu().numpy()
        moments.update(self.feed.draws.shares(self.step)[0], losses)

    def _pass(self) -> Passed:
        """Forward and backward over this rank's micro-batches, after the last of which the engine may step.

        Raises:
            NonFiniteError: some rank's loss is NaN or infinite, and it may not be skipped.
        """
        rank, world, device = dist.get_rank(), dist.get_world_size(), self.place.device
        shape, batch = batch_shape(self.config, world), self.config.training.global_batch_size
        torch.manual_seed(int(counter_generator(self.config.seed, Stream.DROPOUT, self.step, rank).integers(2**63)))
        made = self.feed.batch(self.step, rank * shape.rows, shape.rows)
        rows, x_0 = made.rows, made.x_0
        local_loss, row_losses = torch.zeros(1, device=device), list[Tensor]()
        observed, agreed = list[tuple[Tensor, Tensor, Tensor]](), list[float]()
        for first in range(0, shape.rows, shape.micro_rows):
            part = slice(first, first + shape.micro_rows)
            t, weight = rows.t[part], rows.weight[part].to(device)
            label = None if made.label is None else made.label[part].to(device)
            losses, epsilon_mse = self.engine(
                x_0[part].to(device, non_blocking=True), t, rows.eps[part].to(device, non_blocking=True), label
            )
            loss = total_loss(losses, weight * rows.importance[part].to(device), batch, world)
            local_loss += loss.detach()
            last = first + shape.micro_rows >= shape.rows
            if last:
                agreed = self._agree(local_loss)
                if not all(map(math.isfinite, agreed)):
                    loss = loss * math.nan  # on every rank, so that the gradient of none is finite and no step is taken
            # DeepSpeed divides by the number of micro-batches; total_loss is a share of the sum already
            self.engine.backward(loss * shape.micro_batches)
            row_losses.append(losses.detach())
            with torch.no_grad():
                log_snr = self.feed.draws.process.log_snr(t).cpu()
            observed.append((log_snr, epsilon_mse, weight))
            if not last:
                self.engine.step()  # counts the micro-batch; weights move on the last one only
        return Passed(agreed, torch.cat(row_losses), observed)

    def _agree(self, local_loss: Tensor) -> list[float]:
        """Every rank's loss; with it goes rank 0's word on whether to stop after this step.

        Raises:
            NonFiniteError: one is NaN or infinite, and such a step may not be skipped.
        """
        asked = float(self.stop_request is not None and self.stop_request.reason is not None)
        mine = torch.cat([local_loss, local_loss.new_tensor([asked])])
        told = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(told, mine)
        self.stopping = bool(told[0][1])
        losses = [float(loss) for loss, _ in told]
        if self.config.training.on_nonfinite == "stop":
            require_finite(losses, self.step)
        return losses

    def record(self, record: Record) -> None:
        """Add to the journal from rank 0, unless a newer attempt is in charge of it."""
        if self.journal and self.fence.holds():
            self.journal.append(record)

    def warn(self, text: str) -> None:
        """Add a warning about the step at hand."""
        self.record(Warned(step=self.step, text=text))

    def save_checkpoint(self) -> None:
        """Begin a checkpoint on all ranks, never one with a non-finite weight; returns once the state is copied.

        There is none of weights that steps are being skipped with, which may be the reason, unless they are the last.
        """
        ending = self.step == self.config.training.steps
        if self.skipped == self.step or (self.skips_in_a_row and not ending):
            return
        finite = torch.tensor(
            [float(all(bool(torch.isfinite(flat).all()) for flat in self.masters.flats))], device=self.place.device
        )
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if not finite:
            raise NonFiniteError(f"step {self.step}: a weight is NaN or infinite; no checkpoint was written")
        began, at, folder = time.monotonic(), self.step, self.place.paths.checkpoints
        aligned = {"param": self.masters.flats, **self.ema.tracks}
        aligned |= {kind: self.masters.moments(kind) for kind in MOMENTS}
        moments = self.feed.draws.moments
        loss = sum(self.window) / len(self.window) if self.window else None
        self.window.clear()
        shape = self.feed.draws.image_shape
        manifest = manifest_fields(self.config, self.masters.shapes(), shape, at, self.skipped, loss) | {
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
        self.writer.save(folder, fragments, manifest, self.fence, done)

    def save_snapshot(self) -> None:
        """Begin a snapshot of the EMA's tracks on all ranks, where one is due."""
        at, folder, every = self.step, self.place.paths.ema, self.config.ema.snapshot_every
        if at % snapshots.interval(at, every):
            return

        def done() -> None:
            if self.journal and self.fence.holds():
                snapshots.prune(folder, at, every)

        fragments = fragments_of(self.masters.fragments, self.ema.tracks)
        manifest = manifest_fields(self.config, self.masters.shapes(), self.feed.draws.image_shape, at, self.skipped)
        self.writer.save(folder, fragments, manifest, self.fence, done)

    def close(self) -> None:
        """Finish what is being written, and let the threads go."""
        try:
            self.writer.close()
        finally:
            self.feed.close()
            if self.stop_request:
                self.stop_request.close()


def require_finite(losses: list[float], step: int) -> None:
    """Stop where a rank's loss is NaN or infinite.

    Args:
        losses: one per rank.
        step: for the message.

    Raises:
        NonFiniteError: naming the step and the ranks.
    """
    bad = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
    if bad:
        ranks = ", ".join(str(rank) for rank in bad)
        raise NonFiniteError(
            f"step {step}: the loss is {losses[bad[0]]} on rank {ranks}; stopped before the optimizer step. {HINT}"
        )
