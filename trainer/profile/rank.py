"""One rank of a profile: `python -m trainer.profile.rank` takes its job from standard input, as JSON."""

import json
import os
import platform
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from diffusion.json_text import json_text
from trainer.config.run_config import RunConfig
from trainer.profile.result import OTHER, Profile
from trainer.run.attempt import begin_attempt
from trainer.run.paths import RunPaths
from trainer.runtime.nic import set_interface
from trainer.worker import spans
from trainer.worker.flops import best_convolution, best_matmul, flops_per_image
from trainer.worker.loop import start_worker
from trainer.worker.meters import Meters
from trainer.worker.step import Worker, WorkerContext

WARM_UP = 5


def measure(config: RunConfig, context: WorkerContext, steps: int) -> tuple[Profile, Any]:
    """Warm up, time some steps, and profile as many; collective.

    Args:
        config: of the run.
        context: of this rank.
        steps: how many.

    Returns:
        The profile of this rank, and the profiler with its trace.
    """
    worker, device = start_worker(context), context.device
    meters = Meters(device)
    _take(worker, meters, WARM_UP)
    since = time.perf_counter()
    _take(worker, meters, steps)
    step_ms = 1e3 * (time.perf_counter() - since) / steps
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    everywhere: Any = _ExperimentalConfig(profile_all_threads=True)  # the loader's thread, too
    with profile(activities=activities, experimental_config=everywhere) as profiler:
        since = time.perf_counter()
        _take(worker, meters, steps)
        with torch.profiler.record_function(spans.CHECKPOINT):
            worker.save_checkpoint()
        whole_ms = 1e3 * (time.perf_counter() - since) / steps
    worker.close()
    is_cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if is_cuda else _resident()  # before the device is put to the test
    found = {event.key: event for event in profiler.key_averages()}
    parts = {name: found[name].cpu_time_total / 1e3 / steps for name in spans.STEP if name in found}
    if spans.REDUCTION in parts:  # which is within the optimizer's span
        parts[spans.OPTIMIZER] -= parts[spans.REDUCTION]
    plan, dtype = worker.loader.plan, torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    return Profile(
        device=torch.cuda.get_device_name(device) if is_cuda else _cpu(),
        workers=dist.get_world_size(),
        batch=config.training.global_batch_size,
        step_ms=step_ms,
        parts_ms={**parts, OTHER: whole_ms - sum(parts.values())},
        loader_ms={name: found[name].cpu_time_total / 1e3 / steps for name in spans.LOADER if name in found},
        device_ms={name: found[name].device_time_total / 1e3 / steps for name in parts} if is_cuda else {},
        flops_per_image=flops_per_image(config.network, plan.image_shape, plan.process.reverse_variance == "learned"),
        best={"matrix product": best_matmul(device, dtype), "convolution": best_convolution(device, dtype)},
        peak_memory=peak,
    ), profiler


def _take(worker: Worker, meters: Meters, steps: int) -> None:
    for _ in range(steps):
        worker.train_step(meters)
    worker.settle(meters)


def _resident() -> int:
    """Most bytes that this process had in memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _cpu() -> str:
    """The processor's name, as far as this system says, and how many threads are used."""
    name, threads = platform.machine(), torch.get_num_threads()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), name)
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def main() -> None:
    """Take part; rank 0 writes what it found."""
    job: dict[str, Any] = json.loads(sys.stdin.read())
    config, rank, world = RunConfig.model_validate_json(json.dumps(job["config"])), job["rank"], job["world"]
    device = torch.device(job["device"], rank) if job["device"] == "cuda" else torch.device("cpu")
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    set_interface("lo", os.environ)  # the ranks are on this machine, whose name may have an address that others reach
    if job["device"] == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, int(config.parallel.cpus_per_worker)))
    folder = Path(job["folder"])
    backend = "nccl" if job["device"] == "cuda" else "gloo"
    dist.init_process_group(backend, store=FileStore(str(folder / "store"), world), rank=rank, world_size=world)
    paths = RunPaths(folder / "run")
    paths.root.mkdir(exist_ok=True)
    begin_attempt(paths.attempt, "profile")
    found, profiler = measure(
        config, WorkerContext(config, paths, Path(job["dataset"]), device, "profile"), job["steps"]
    )
    if rank == 0:
        profiler.export_chrome_trace(str(Path(job["out"]) / "trace.json"))
        (Path(job["out"]) / "profile.json").write_text(json_text(found.to_json(), indent=2) + "\n")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads let go of Python objects late


if __name__ == "__main__":
    main()
