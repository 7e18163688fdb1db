"""`python -m tests.integration.interface`: a gang of two that says over which interface its process group was made."""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from trainer.runtime.nic import NodeTorchConfig
from trainer.runtime.ray_cluster import connect_ray


def work(payload: dict[str, str]) -> None:
    """Sum the ranks over the process group and write what this worker was told."""
    total = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(total)
    told = [os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]]
    Path(payload["out"], str(dist.get_rank())).write_text(f"{told} {int(total)}", encoding="utf-8")


if __name__ == "__main__":
    connect_ray()
    with tempfile.TemporaryDirectory() as out:
        TorchTrainer(
            work,
            train_loop_config={"out": out},
            torch_config=NodeTorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(name="interface", storage_path=str(Path(out, "ray"))),
        ).fit()
        for rank in range(2):
            print(f"rank {rank}:", Path(out, str(rank)).read_text(encoding="utf-8"))
