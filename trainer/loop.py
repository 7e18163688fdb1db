"""The training loop that every Ray Train worker runs.

    draws -> engine(objective) -> engine.backward -> all ranks agree the loss is finite -> engine.step -> ema

The engine's module is the objective, so whatever is trained beside the network (a learned schedule, an adaptive
lambda(t)) is sharded, averaged and checkpointed like it. Everything a step depends on is a function of (config, step)
or in the checkpoint, so resuming is loading the newest complete one and going on. Rank 0 reports to the journal alone.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from diffusion.config import ImportanceTime
from diffusion.denoiser import Denoiser
from diffusion.images import to_model_range
from diffusion.keyed import Stream, keyed_generator
from diffusion.network import build_network
from diffusion.objective import Objective, total_loss
from diffusion.sde import make_process
from diffusion.time_sampling import LossMoments
from trainer import checkpoint
from trainer.config import RunConfig
from trainer.data.dataset import open_dataset
from trainer.draws import Draws, Rows
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
    masters: Masters
    ema: ShardedEma
    draws: Draws
    images: Any
    labels: Tensor | None
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
        local_loss, row_losses = self._accumulate(meters)
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
        if self.draws.moments:
            self._update_moments(self.draws.moments, row_losses)
        self.ema.update(self.step)
        meters.add_step(float(sum(losses)) / len(losses), norm)

    def _update_moments(self, moments: LossMoments, row_losses: Tensor) -> None:
        """Take in the losses of the global batch, the same on every rank."""
        gathered = [torch.zeros_like(row_losses) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, row_losses)
        batch = self.config.training.global_batch_size
        losses = torch.cat(gathered)[:batch].double().cpu().numpy()
        moments.update(self.draws.shares(self.step)[0], losses)

    def _accumulate(self, meters: Meters) -> tuple[Tensor, Tensor]:
        """Forward and backward over this rank's micro-batches.

        Returns:
            This rank's share of the loss, fp32 [1], and the weighted loss of each of its rows, fp32 [R].
        """
        shape, batch = batch_shape(self.config), self.config.training.global_batch_size
        rank, world = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(int(keyed_generator(self.config.seed, Stream.DROPOUT, self.step, rank).integers(2**63)))
        rows = self.draws.rows(self.step, rank * shape.rows, shape.rows)
        x_0 = to_model_range(self.images[rows.images])
        labels = self._shown_labels(rows)
        local_loss, row_losses = torch.zeros(1, device=self.device), list[Tensor]()
        for first in range(0, shape.rows, shape.micro_rows):
            part = slice(first, first + shape.micro_rows)
            t, weight = rows.t[part], rows.weight[part].to(self.device)
            label = None if labels is None else labels[part].to(self.device)
            losses, epsilon_mse = self.engine(x_0[part].to(self.device), t, rows.eps[part].to(self.device), label)
            loss = total_loss(losses, weight * rows.importance[part].to(self.device), batch, world)
            # DeepSpeed divides by the number of micro-batches; total_loss is a share of the sum already
            self.engine.backward(loss * shape.micro_batches)
            local_loss += loss.detach()
            row_losses.append(losses.detach())
            with torch.no_grad():
                log_snr = self.draws.process.log_snr(t).cpu()
            meters.add_rows(log_snr, epsilon_mse, weight)
            if first + shape.micro_rows < shape.rows:
                self.engine.step()  # counts the micro-batch; weights move on the last one only
        return local_loss, torch.cat(row_losses)

    def _shown_labels(self, rows: Rows) -> Tensor | None:
        """The labels that the network is told, int64 [R]; None for a network without classes."""
        if self.labels is None:
            return None
        hidden = torch.full_like(rows.hidden, self.config.network.classes, dtype=torch.int64)
        return torch.where(rows.hidden, hidden, self.labels[rows.images])

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
        moments = self.draws.moments
        state = {"sums": moments.sums.tolist(), "counts": moments.counts.tolist()} if moments else None
        checkpoint.save(self.paths.checkpoints, self.step, self.config, self.masters, self.ema, self.fence, state)
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
    torch.manual_seed(config.seed)
    objective = build_objective(config, dataset.info.image_shape)
    process = objective.denoiser.process
    resumed = _agree_on_checkpoint(paths, journal)
    if resumed:
        objective.load_state_dict(resumed.tensors("param"))
    engine = initialize(objective.to(device), config, device)
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
        masters=masters,
        ema=ema,
        draws=Draws(
            config.seed,
            dataset.info.train,
            config.training.global_batch_size,
            process,
            config.objective,
            dataset.info.image_shape,
            restored_moments(config, resumed),
        ),
        images=dataset.images("train"),
        labels=torch.from_numpy(dataset.labels("train")) if config.network.classes else None,
        journal=journal,
        fence=checkpoint.Fence(paths.attempt, attempt),
        step=resumed.step if resumed else 0,
    )


def build_objective(config: RunConfig, image_shape: tuple[int, int, int]) -> Objective:
    """The objective around a freshly initialised network, with all that is trained as its children."""
    process = make_process(config.process)
    network = build_network(config.network, image_shape, process.reverse_variance == "learned")
    settings = config.objective
    null_label = config.network.classes or None
    return Objective(settings, Denoiser(network, process, settings.prediction, settings.sigma_data, null_label))


def restored_moments(config: RunConfig, resumed: checkpoint.Checkpoint | None) -> LossMoments | None:
    """The second moments that t is drawn by, as the checkpoint has them; None for other ways to draw t."""
    if not isinstance(config.objective.time_sampling, ImportanceTime):
        return None
    moments = LossMoments(config.objective.time_sampling)
    if resumed:
        moments.sums, moments.counts = (np.array(resumed.loss_moments[name]) for name in ("sums", "counts"))
    return moments


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
