"""The training loop that every Ray Train worker runs.

    draws -> objective(denoiser) -> engine.backward -> all ranks agree the loss is finite -> engine.step -> ema

Everything a step depends on is a function of (config, step), so resuming is loading the newest complete checkpoint and
going on. Rank 0 reports to the run's journal and to nothing else.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.images import to_model_range
from diffusion.keyed import Stream, keyed_generator
from diffusion.network import build_network
from diffusion.objective import Objective, total_loss
from diffusion.schedule import Schedule
from trainer import checkpoint
from trainer.config import RunConfig
from trainer.data.dataset import open_dataset
from trainer.draws import Draws
from trainer.journal import Journal
from trainer.meters import Meters
from trainer.paths import RunPaths
from trainer.sharded_ema import ShardedEma
from trainer.zero import Masters, initialize, step
from trainer.zero_config import batch_shape

HINT = "A lower optim.lr or optim.max_grad_norm usually helps"


class NonFiniteError(RuntimeError):
    """A loss or weight that is NaN or infinite; raised on every rank alike, before anything is spoiled."""


@dataclass
class Worker:
    """One rank's training state."""

    config: RunConfig
    paths: RunPaths
    device: torch.device
    engine: Any
    objective: Objective
    masters: Masters
    ema: ShardedEma
    draws: Draws
    images: Any
    journal: Journal | None
    fence: checkpoint.Fence
    step: int = 0

    @property
    def lr(self) -> float:
        """The learning rate of the step at hand: linear warm-up, then constant."""
        return self.config.optim.lr * min(1.0, self.step / max(1, self.config.optim.warmup_steps))

    def train_step(self, meters: Meters) -> None:
        """One optimizer step on the next global batch.

        Raises:
            NonFiniteError: some rank's loss, or the gradient, is NaN or infinite; no weight has changed.
        """
        self.step += 1
        local_loss = self._accumulate(meters)
        losses = [torch.zeros_like(local_loss) for _ in range(dist.get_world_size())]
        dist.all_gather(losses, local_loss)
        require_finite([float(loss) for loss in losses], self.step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.lr
        norm = step(self.engine, self.config.parallel.zero_stage)
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"step {self.step}: the gradient's norm over all ranks is {norm} though the loss is finite; "
                f"stopped before the optimizer step. {HINT}"
            )
        self.ema.update(self.step)
        meters.add_step(float(sum(losses)) / len(losses), norm)

    def _accumulate(self, meters: Meters) -> Tensor:
        """Forward and backward over this rank's micro-batches; this rank's share of the loss, fp32 [1]."""
        shape, batch = batch_shape(self.config), self.config.training.global_batch_size
        rank, world = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(int(keyed_generator(self.config.seed, Stream.DROPOUT, self.step, rank).integers(2**63)))
        rows = self.draws.rows(self.step, rank * shape.rows, shape.rows)
        x_0 = to_model_range(self.images[rows.images])
        local_loss = torch.zeros(1, device=self.device)
        for first in range(0, shape.rows, shape.micro_rows):
            part = slice(first, first + shape.micro_rows)
            t, weight = rows.t[part], rows.weight[part].to(self.device)
            losses = self.objective(x_0[part].to(self.device), t.to(self.device), rows.eps[part].to(self.device))
            loss = total_loss(losses, weight, batch, world)
            # DeepSpeed divides by the number of micro-batches; total_loss is a share of the sum already
            self.engine.backward(loss * shape.micro_batches)
            local_loss += loss.detach()
            meters.add_rows(self.objective.denoiser.schedule.log_snr[t], losses.epsilon_mse, weight)
            if first + shape.micro_rows < shape.rows:
                self.engine.step()  # counts the micro-batch; weights move on the last one only
        return local_loss

    def record(self, kind: str, **values: Any) -> None:  # noqa: ANN401 - any JSON value
        """Add to the journal from rank 0, unless a newer attempt is in charge of it."""
        if self.journal and self.fence.holds():
            self.journal.append(kind, step=self.step, **values)

    def save_checkpoint(self) -> None:
        """Write a checkpoint on all ranks, never one with a non-finite weight."""
        finite = torch.tensor(
            [float(all(bool(torch.isfinite(flat).all()) for flat in self.masters.flats))], device=self.device
        )
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if not finite:
            raise NonFiniteError(f"step {self.step}: a weight is NaN or infinite; no checkpoint was written")
        started = time.monotonic()
        checkpoint.save(self.paths.checkpoints, self.step, self.config, self.masters, self.ema, self.fence)
        if self.journal:
            checkpoint.prune(self.paths.checkpoints, self.config.run.keep_checkpoints)
        self.record("checkpoint", seconds=round(time.monotonic() - started, 3))


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


def start_worker(
    config: RunConfig, paths: RunPaths, dataset_folder: Path, device: torch.device, attempt: str
) -> Worker:
    """Build this rank's state, at the newest complete checkpoint if there is one; collective."""
    journal = Journal(paths.journal) if dist.get_rank() == 0 else None
    dataset = open_dataset(dataset_folder)
    schedule = Schedule.from_config(config.process)
    torch.manual_seed(config.seed)
    network = build_network(config.network, dataset.info.image_shape)
    resumed = _agree_on_checkpoint(paths, journal)
    if resumed:
        network.load_state_dict(resumed.tensors("param"))
    engine = initialize(network.to(device), config, device)
    masters = Masters(engine, config.parallel.zero_stage)
    ema = ShardedEma(masters.flats, config.ema.sigma_rel)
    if resumed:
        masters.restore_moments(resumed.step, resumed.read)
        for fragment in masters.fragments:
            fragment.of(ema.flats).copy_(resumed.read("ema", fragment.name, fragment.offset, fragment.numel))
    return Worker(
        config=config,
        paths=paths,
        device=device,
        engine=engine,
        objective=Objective(config.objective, Denoiser(engine, schedule, config.objective.prediction)),
        masters=masters,
        ema=ema,
        draws=Draws(
            config.seed,
            dataset.info.train,
            config.training.global_batch_size,
            schedule.num_steps,
            config.objective.time_sampling,
            dataset.info.image_shape,
        ),
        images=dataset.images("train"),
        journal=journal,
        fence=checkpoint.Fence(paths.attempt, attempt),
        step=resumed.step if resumed else 0,
    )


def _agree_on_checkpoint(paths: RunPaths, journal: Journal | None) -> checkpoint.Checkpoint | None:
    """Rank 0 looks for the newest good checkpoint, and every rank takes that one."""
    choice: list[Path | None] = [None]
    if journal:
        found = checkpoint.find_latest(paths.checkpoints)
        for reason in found.refused:
            journal.append("warning", text=f"checkpoint passed over: {reason}")
        choice = [found.folder]
    dist.broadcast_object_list(choice, src=0)
    return checkpoint.Checkpoint(choice[0]) if choice[0] else None


def run(worker: Worker, report: Any) -> None:  # noqa: ANN401 - ray.train.report
    """Train to `training.steps`; a non-finite loss ends it with a record in the journal.

    Args:
        worker: from `start_worker`.
        report: called with metrics on every rank at every checkpoint.
    """
    settings, last = worker.config.run, worker.config.training.steps
    meters = Meters(worker.device)
    worker.record("start", steps=last, world_size=dist.get_world_size())
    try:
        while worker.step < last:
            worker.train_step(meters)
            if worker.step % settings.log_every == 0 or worker.step == last:
                metrics = meters.flush(worker.config.training.global_batch_size)
                worker.record("metrics", lr=worker.lr, **metrics)
            if worker.step % settings.checkpoint_every == 0 or worker.step == last:
                worker.save_checkpoint()
                report({"step": worker.step, "loss": meters.last_loss})
    except NonFiniteError as error:
        worker.record("nonfinite", text=str(error))
