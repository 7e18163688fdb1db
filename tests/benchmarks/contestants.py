"""Training loops that take their steps when they are told to, so that several can be timed in turns.

A contestant is one process a rank. A line `N` on its standard input has it take N steps, after which it prints the
seconds that they took; it ends when its standard input does.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.network import build_network
from tests.benchmarks.other_trainers import LOOPS as OTHERS
from trainer.config.run_config import RunConfig

BARE, OURS = "bare", "ours"
READY, TOOK = "ready", "took "


class Gate:
    """Lets through as many steps as were asked for; `step()` is called before each."""

    def __init__(self) -> None:
        """Closed, until the first line."""
        self._left = 0
        self._since: float | None = None

    def step(self) -> None:
        """Wait for leave to take a step; the end of input ends the process."""
        if self._left == 0:
            print(READY if self._since is None else f"{TOOK}{time.perf_counter() - self._since:.6f}", flush=True)
            line = sys.stdin.readline()
            if not line:
                os._exit(0)  # whatever threads do
            self._left, self._since = int(line), time.perf_counter()
        self._left -= 1


def ours(options: argparse.Namespace, gate: Gate) -> None:
    """The worker's own loop, `trainer.worker.loop.run`, on gloo ranks or GPUs, without Ray."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    from trainer.config.load import load_config
    from trainer.data.prepare import prepare
    from trainer.run import attempt
    from trainer.run.paths import RunPaths
    from trainer.worker import loop, step

    os.environ |= {"RANK": str(options.rank), "WORLD_SIZE": str(options.world), "LOCAL_RANK": "0"}
    torch.set_num_threads(options.threads)
    dist.init_process_group(
        "gloo", store=FileStore(options.store, options.world), rank=options.rank, world_size=options.world
    )
    config = load_config(options.config, options.sets)
    paths = RunPaths.of(config)
    paths.root.mkdir(parents=True, exist_ok=True)
    dataset = prepare(config.data, Path(config.run.storage or "")).folder
    attempt.begin_attempt(paths.attempt, "benchmark")
    train_step = step.Worker.train_step

    def gated(worker: step.Worker, *arguments: object) -> object:
        gate.step()
        return train_step(worker, *arguments)  # pyright: ignore[reportArgumentType]

    step.Worker.train_step = gated  # pyright: ignore[reportAttributeAccessIssue]
    device = torch.device("cpu")
    loop.run(step.WorkerContext(config, paths, dataset, device, "benchmark"), lambda _: None)


def bare(options: argparse.Namespace, gate: Gate) -> None:
    """The loop that anybody would write in PyTorch: one process, nothing beside it."""
    from trainer.config.load import load_config
    from trainer.data.dataset import open_dataset
    from trainer.data.prepare import prepare

    torch.set_num_threads(options.threads)
    config = load_config(options.config, options.sets)
    dataset = open_dataset(prepare(config.data, Path(config.run.storage or "")).folder)
    images, network = (
        torch.from_numpy(dataset.images("train")[:].copy()),
        build_network(config.network, dataset.info.image_shape),
    )
    step = bare_step(network, config, images, torch.device("cpu"))
    while True:
        gate.step()
        step()


def bare_step(network: nn.Module, config: RunConfig, images: Tensor, device: torch.device) -> Callable[[], None]:
    """Equation (8) for a cosine chain, AdamW, clipping and two EMA tracks: a step in twenty lines.

    Args:
        network: maps (x_t, time, None) to the noise.
        config: learning rate, bound of the gradient's norm, rows of a batch and precision.
        images: uint8 [N, H, W, C].
        device: of everything.
    """
    network = network.to(device)
    parameters = list[Tensor](network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.optim.lr, fused=True)
    averages = [[parameter.detach().clone() for parameter in parameters] for _ in range(2)]
    data = images.permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
    rows, steps, bf16 = config.training.global_batch_size, 1000, config.training.precision == "bf16"
    alpha = torch.cos((torch.arange(steps + 1, device=device) / steps + 0.008) / 1.008 * torch.pi / 2)
    places = torch.arange(rows, device=device)

    def step() -> None:
        x_0 = data[torch.randint(len(data), (rows,), device=device)]
        t = ((places + torch.rand(rows, device=device)) / rows * steps).long()
        eps, a = torch.randn_like(x_0), alpha[t].view(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output = network(a * x_0 + (1 - a**2).sqrt() * eps, t.float(), None)
        nn.functional.mse_loss(output.float(), eps).backward()
        nn.utils.clip_grad_norm_(parameters, config.optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for average, weight in zip(averages, (0.01, 0.002), strict=True):
                torch._foreach_lerp_(average, parameters, weight)  # pyright: ignore[reportPrivateImportUsage]

    return step


def other(options: argparse.Namespace, gate: Gate) -> None:
    """Another project's loop around the same network, on random images of the data's shape."""
    from trainer.config.load import load_config
    from trainer.data.prepare import prepare

    torch.set_num_threads(options.threads)
    config = load_config(options.config, options.sets)
    shape = prepare(config.data, Path(config.run.storage or "")).info.image_shape
    step = OTHERS[options.loop](build_network(config.network, shape), config, shape, torch.device("cpu"))
    while True:
        gate.step()
        step()


LOOPS = {BARE: bare, OURS: ours, **dict.fromkeys(OTHERS, other)}


def main() -> None:
    """Take part."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.contestants", description=__doc__)
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--config", type=Path, default=Path("configs/digits.yaml"))
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--store", default="")
    options = parser.parse_args()
    LOOPS[options.loop](options, Gate())


if __name__ == "__main__":
    main()
