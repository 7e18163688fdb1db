"""Training metrics over all ranks: loss, loss by log-SNR bucket, gradient norm and images per second."""

import time
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

EDGES = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)


def bucket_names() -> list[str]:
    """Metric names of the log-SNR buckets, noisiest first."""
    bounds = ["min", *(f"{edge:+.0f}" for edge in EDGES), "max"]
    return [f"epsilon_mse/log_snr_{low}_{high}".replace("+", "p").replace("-", "m") for low, high in pairwise(bounds)]


class Meters:
    """Sums of metrics since the last flush; only `flush` communicates between ranks."""

    def __init__(self, device: torch.device) -> None:
        """Start empty; the clock starts now."""
        self._edges = torch.tensor(EDGES, dtype=torch.float64)
        self._buckets = torch.zeros(2, len(EDGES) + 1, device=device)
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._skipped = 0
        self._since = time.perf_counter()
        self.last_loss = float("nan")

    def add_rows(self, log_snr: Tensor, epsilon_mse: Tensor, row_mask: Tensor) -> None:
        """Add this rank's rows.

        Args:
            log_snr: log-SNR of the rows, float64 [R] on the CPU.
            epsilon_mse: mean squared error of the predicted noise, [R].
            row_mask: 1 for a real row, 0 for padding, [R].
        """
        bucket = torch.bucketize(log_snr, self._edges).to(epsilon_mse.device)
        self._buckets[0].index_add_(0, bucket, epsilon_mse.float() * row_mask)
        self._buckets[1].index_add_(0, bucket, row_mask)

    def add_step(self, loss: float, gradient_norm: float) -> None:
        """Add one step's global loss and gradient norm."""
        self._losses.append(loss)
        self._norms.append(gradient_norm)
        self.last_loss = loss

    def add_skip(self) -> None:
        """Add a skipped step; its rows count for the throughput."""
        self._skipped += 1

    def flush(self, global_batch_size: int) -> dict[str, float]:
        """Means since the last flush, over all ranks; collective. Metrics without values are left out."""
        dist.all_reduce(self._buckets)
        sums, counts = self._buckets.tolist()
        now = time.perf_counter()
        taken = len(self._losses)
        metrics = {"images_per_second": global_batch_size * (taken + self._skipped) / (now - self._since)}
        if taken:
            metrics |= {"loss": sum(self._losses) / taken, "gradient_norm": sum(self._norms) / taken}
        if self._skipped:
            metrics["skipped_steps"] = float(self._skipped)
        metrics |= {name: total / n for name, total, n in zip(bucket_names(), sums, counts, strict=True) if n}
        self._buckets.zero_()
        self._losses.clear()
        self._norms.clear()
        self._skipped = 0
        self._since = now
        return metrics
