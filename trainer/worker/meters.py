"""Training metrics: loss, loss by log-SNR bucket, gradient norm, images per second and what the device makes of them.

`mfu` is model FLOPs utilisation against the device's own best (flops.py), `waited_for_data` the share of rank 0's time
in which there was no batch to train on.
"""

import time
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.worker.system import NodeSampler, named, node_name

EDGES = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)


def bucket_names() -> list[str]:
    """Metric names of the log-SNR buckets, noisiest first."""
    bounds = ["min", *(f"{edge:+.0f}" for edge in EDGES), "max"]
    return [f"epsilon_mse/log_snr_{low}_{high}".replace("+", "p").replace("-", "m") for low, high in pairwise(bounds)]


class Meters:
    """Sums of metrics over a window of steps; only `reduce` communicates, and nothing here waits for a GPU."""

    def __init__(self, device: torch.device, images_per_second_at_best: float | None = None) -> None:
        """Start empty; the clock starts now. Collective.

        Args:
            device: of the rows.
            images_per_second_at_best: of all ranks, if their devices did nothing but the network's arithmetic, at their
                best; None leaves out `mfu`.
        """
        self._at_best, self._waited = images_per_second_at_best, 0.0
        self._sampler, self._nodes = NodeSampler(device), [node_name()] * dist.get_world_size()
        if len(self._nodes) > 1:
            dist.all_gather_object(self._nodes, node_name())
        self._edges = torch.tensor(EDGES, dtype=torch.float64)
        self._buckets = torch.zeros(2, len(EDGES) + 1, device=device)
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._skipped = 0
        self._since = time.perf_counter()
        self.last_loss = float("nan")

    def add_rows(self, log_snr: Tensor, epsilon_mse: Tensor, row_mask: Tensor, taken: Tensor) -> None:
        """Add this rank's rows, if their step was taken.

        Args:
            log_snr: log-SNR of the rows, float64 [R] on the CPU.
            epsilon_mse: mean squared error of the predicted noise, [R].
            row_mask: 1 for a real row, 0 for padding, [R].
            taken: whether the step was taken, bool [].
        """
        bucket = torch.bucketize(log_snr, self._edges).to(epsilon_mse.device, non_blocking=True)
        rows = torch.stack([epsilon_mse.float() * row_mask, row_mask])
        self._buckets.index_add_(1, bucket, torch.where(taken, rows, 0.0))

    def add_step(self, loss: float, gradient_norm: float) -> None:
        """Add one step's global loss and gradient norm."""
        self._losses.append(loss)
        self._norms.append(gradient_norm)
        self.last_loss = loss

    def add_waited(self, seconds: float) -> None:
        """Add time in which there was no batch to train on."""
        self._waited += seconds

    def add_skip(self) -> None:
        """Add a skipped step; its rows count for the throughput."""
        self._skipped += 1

    def forget_rows(self) -> None:
        """Leave out the rows of the window so far: those of a step that is taken back cannot be told apart."""
        self._buckets.zero_()

    def reduce(self) -> Tensor:
        """End the window: sums and counts of all ranks' rows by bucket, then the ranks' samples of their nodes, [n].

        Collective.
        """
        buckets, self._buckets = self._buckets, torch.zeros_like(self._buckets)
        sample = self._sampler.sample().to(buckets.device, non_blocking=True)
        samples = sample.new_empty(len(self._nodes) * len(sample))
        if len(self._nodes) == 1:
            samples = sample
        else:
            dist.all_reduce(buckets)
            dist.all_gather_single(samples, sample)
        return torch.cat([buckets.flatten(), samples])

    def flush(self, global_batch_size: int, reduced: list[float], now: float) -> dict[str, float]:
        """Means of the window that `reduce` has ended; metrics without values are left out.

        Args:
            global_batch_size: images of a step.
            reduced: what `reduce` returned.
            now: when the window ended, by `time.perf_counter`.
        """
        size = self._buckets[0].numel()
        sums, counts, samples = reduced[:size], reduced[size : 2 * size], reduced[2 * size :]
        taken = len(self._losses)
        rate = global_batch_size * (taken + self._skipped) / (now - self._since)
        metrics = {"images_per_second": rate, "waited_for_data": self._waited / (now - self._since)}
        if self._at_best:
            metrics["mfu"] = rate / self._at_best
        if taken:
            metrics |= {"loss": sum(self._losses) / taken, "gradient_norm": sum(self._norms) / taken}
        if self._skipped:
            metrics["skipped_steps"] = float(self._skipped)
        metrics |= {name: total / n for name, total, n in zip(bucket_names(), sums, counts, strict=True) if n}
        metrics |= named(self._nodes, samples)
        self._losses.clear()
        self._norms.clear()
        self._skipped, self._waited = 0, 0.0
        self._since = now
        return metrics
