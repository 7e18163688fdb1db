"""What the nodes with workers are busy with, sampled there by each rank, under the names that MLflow has for it.

Samples are taken where a window of metrics ends and travel to rank 0 with its sums, so that they cost no thread, no
connection and no message of their own.
"""

import math
import platform
from itertools import count

import psutil
import torch

SIZE = 5
MEGA = 10**6


class NodeSampler:
    """Samples this rank's node and GPU."""

    def __init__(self, device: torch.device) -> None:
        """CPU utilisation is of the time since the last sample, the first of which this takes."""
        self._device = device
        psutil.cpu_percent(None)

    def sample(self) -> torch.Tensor:
        """CPU and memory utilisation in percent, memory in MB; the GPU's likewise, or NaN: float32 [SIZE]."""
        memory = psutil.virtual_memory()
        values = [psutil.cpu_percent(None), memory.percent, (memory.total - memory.available) / MEGA]
        return torch.tensor([*values, *self._gpu()])

    def _gpu(self) -> list[float]:
        if self._device.type != "cuda":
            return [math.nan, math.nan]
        free, total = torch.cuda.mem_get_info(self._device)
        try:
            utilisation = float(torch.cuda.utilization(self._device))
        except Exception:  # noqa: BLE001 - without NVIDIA's library, or on a part of a GPU that it says nothing of
            utilisation = math.nan
        return [utilisation, (total - free) / MEGA]


def node_name() -> str:
    """This node's name, by which the ranks on it are told from others."""
    return platform.node() or "node"


def named(nodes: list[str], values: list[float]) -> dict[str, float]:
    """Samples of all ranks as metrics: each node once, each rank's GPU; `system/<node>/…` if there are several nodes.

    Args:
        nodes: each rank's node.
        values: the ranks' samples, one after the other.
    """
    metrics = dict[str, float]()
    gpus = {node: count() for node in nodes}
    for rank, node in enumerate(nodes):
        prefix = "system/" if len(gpus) == 1 else f"system/{node}/"
        cpu, memory, memory_mb, gpu, gpu_mb = values[SIZE * rank : SIZE * (rank + 1)]
        metrics.setdefault(f"{prefix}cpu_utilization_percentage", cpu)
        metrics.setdefault(f"{prefix}system_memory_usage_percentage", memory)
        metrics.setdefault(f"{prefix}system_memory_usage_megabytes", memory_mb)
        number = next(gpus[node])
        metrics[f"{prefix}gpu_{number}_utilization_percentage"] = gpu
        metrics[f"{prefix}gpu_{number}_memory_usage_megabytes"] = gpu_mb
    return {name: value for name, value in metrics.items() if not math.isnan(value)}
