"""`python -m tests.benchmarks.gpu`: what a GPU makes of DualView, in four minutes, in one process and without Ray.

A checkout and a machine with PyTorch are enough; docs/benchmarks.md lists the wheels that a bare one needs. Parts run
in the order of what they are worth, and print their rows as they come; the JSON file has all rows so far, whatever cuts
the script off. What cannot run is a row with the reason.

    python -m tests.benchmarks.gpu
    python -m tests.benchmarks.gpu --only training --only solvers
    python -m tests.benchmarks.gpu --device cpu --tiny                 # what `make test` runs
"""

import argparse
import copy
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from diffusion.config import DdpmProcess, DiTConfig, MLPConfig, NetworkConfig, UNetConfig, VpProcess
from diffusion.config.solver import SOLVER_ADAPTER
from diffusion.denoiser import Denoiser
from diffusion.device import full_precision, network_on
from diffusion.frechet import Moments
from diffusion.likelihood.discrete import ReverseKernel, bits_per_dim, estimate_vlb
from diffusion.network import build_network
from diffusion.process.sde import make_process
from diffusion.solvers import SOLVERS, ImageNoise, solve
from tests.benchmarks.contestants import bare_step
from trainer.checkpoint.background import AsyncCheckpointWriter
from trainer.checkpoint.reader import Checkpoint
from trainer.config.run_config import RunConfig
from trainer.ema.sharded import ShardedEma
from trainer.run.attempt import Fence, begin_attempt
from trainer.run.manifest import step_folder
from trainer.run.paths import RunPaths
from trainer.worker.batch_plan import BatchPlan
from trainer.worker.batches import BatchLoader
from trainer.worker.deepspeed_config import deepspeed_config
from trainer.worker.engine import ClippedAdamW, Masters, deepspeed_engine, initialize
from trainer.worker.flops import best_convolution, best_flops, best_matmul, flops_per_image
from trainer.worker.meters import Meters
from trainer.worker.objective import build_objective
from trainer.worker.step import Worker, WorkerContext

PUBLIC = "fast-DiT: DiT-XL/2 at 107 images/s on an A100, fp16, gradient checkpointing; about 0.24 MFU"


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    dit: DiTConfig
    unet: UNetConfig
    small: UNetConfig
    rows: int
    latent: tuple[int, int, int]
    image: tuple[int, int, int]
    turns: int
    steps: int
    agreement_steps: int
    curve: tuple[int, ...]
    samples: int


FULL = Sizes(
    dit=DiTConfig(layers=28, heads=16, head_width=72, patch_size=2, classes=1000),
    unet=UNetConfig(
        channels=(128, 256, 384, 512), attention=(False, False, True, True), layers_per_block=2, norm_groups=32
    ),
    small=UNetConfig(channels=(64, 128), attention=(False, True)),
    rows=64,
    latent=(4, 32, 32),
    image=(3, 64, 64),
    turns=5,
    steps=4,
    agreement_steps=100,
    curve=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    samples=256,
)
TINY = Sizes(
    dit=DiTConfig(layers=1, heads=2, head_width=8, classes=3),
    unet=UNetConfig(channels=(8, 8), norm_groups=4),
    small=UNetConfig(channels=(8, 8), norm_groups=4),
    rows=4,
    latent=(4, 8, 8),
    image=(3, 8, 8),
    turns=2,
    steps=1,
    agreement_steps=3,
    curve=(1, 4),
    samples=8,
)


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        part: the part that found it.
        what: what it is.
        value: None where there is none.
        unit: its unit.
        note: spread, error, or why there is no number.
        passed: for checks, whether it is as it should be.
    """

    part: str
    what: str
    value: float | None
    unit: str
    note: str = ""
    passed: bool | None = None


@dataclass(frozen=True)
class Bench:
    """The device and the sizes that all parts share."""

    device: torch.device
    sizes: Sizes

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def timed(self, action: Callable[[], object], times: int) -> float:
        """Seconds of one of several calls."""
        self.wait()
        since = time.perf_counter()
        for _ in range(times):
            action()
        self.wait()
        return (time.perf_counter() - since) / times

    def config(self, network: NetworkConfig, precision: str, **parallel: object) -> RunConfig:
        """A run's configuration on one rank."""
        return RunConfig.model_validate(
            {
                "network": network.model_dump(),
                "training": {"global_batch_size": self.sizes.rows, "steps": 10**6, "precision": precision},
                "parallel": {"workers": 1, "zero_stage": 0, **parallel},
                "run": {"log_every": 10**6, "checkpoint_every": 10**6},
            },
            strict=False,
        )


def make_worker(
    bench: Bench, config: RunConfig, shape: tuple[int, int, int], root: Path, stage: int | None = None
) -> Worker:
    """The worker of a run on random images; with a stage, on DeepSpeed's engine at that stage."""
    torch.manual_seed(0)
    paths = RunPaths(root)
    root.mkdir(parents=True, exist_ok=True)
    begin_attempt(paths.attempt, "gpu")
    objective = build_objective(config, shape).to(bench.device)
    if stage is None:
        engine = initialize(objective, config, bench.device)
    else:
        settings = deepspeed_config(config, 1)
        engine = deepspeed_engine(objective, ClippedAdamW(objective.parameters(), config.optim), settings, bench.device)
    masters = Masters(engine)
    images = np.random.default_rng(0).integers(0, 256, (1024, *shape[1:], shape[0]), dtype=np.uint8)
    classes = config.network.classes
    plan = BatchPlan(0, len(images), config.training, objective.denoiser.process, config.objective, shape)
    labels = torch.arange(len(images)) % classes if classes else None
    return Worker(
        context=WorkerContext(config, paths, root, bench.device, "gpu"),
        engine=engine,
        masters=masters,
        ema=ShardedEma(masters.flats, config.ema.tracks),
        loader=BatchLoader(plan, images, labels, classes, bench.device),
        writer=AsyncCheckpointWriter(),
        dataset_fingerprint="0" * 64,
        journal=None,
        fence=Fence(paths.attempt, "gpu"),
        stop_request=None,
    )


def in_turns(bench: Bench, rows: int, actions: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Images/s of each, in turns, after one turn that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(bench.sizes.turns + 1):
        for name, action in actions.items():
            seconds = bench.timed(action, bench.sizes.steps)
            if turn:
                rates[name].append(rows / seconds)
    return rates


def train(
    bench: Bench, part: str, name: str, config: RunConfig, shape: tuple[int, int, int], stage: int | None = None
) -> Iterator[Row]:
    """A worker's steps and a bare loop's, in turns: images/s, their ratio, MFU, peak memory."""
    rows, precision = config.training.global_batch_size, config.training.precision
    with tempfile.TemporaryDirectory() as folder:
        if bench.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(bench.device)
        worker = make_worker(bench, config, shape, Path(folder), stage)
        meters = Meters(bench.device)
        ours = partial(worker.train_step, meters)
        ours()
        bench.wait()
        if bench.is_cuda:
            yield Row(part, f"{name}: peak memory", torch.cuda.max_memory_allocated(bench.device) / 2**30, "GiB")
        images = torch.from_numpy(
            np.random.default_rng(0).integers(0, 256, (1024, *shape[1:], shape[0]), dtype=np.uint8)
        )
        torch.manual_seed(0)
        bare = bare_step(build_network(config.network, shape), config, images, bench.device)
        rates = in_turns(bench, rows, {"ours": ours, "bare": bare})
        worker.close()
        worker.engine.destroy()
    at_best = best_flops(bench.device, precision) / flops_per_image(config.network, shape, False)
    ratios = [a / b for a, b in zip(rates["ours"], rates["bare"], strict=True)]
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    for loop, found in rates.items():
        rate = statistics.median(found)
        note = f"{min(found):.1f} to {max(found):.1f}; MFU {rate / at_best:.3f}"
        yield Row(part, f"{name}: {loop}", rate, "images/s", note)
    yield Row(part, f"{name}: ours over bare", statistics.median(ratios), "", spread)


def training(bench: Bench) -> Iterator[Row]:
    """DiT-XL/2 on latents and a U-Net on images, in bf16 and fp32, beside a bare loop."""
    dit, unet = bench.sizes.dit, bench.sizes.unet
    for precision in ("bf16", "fp32"):
        yield from train(bench, "training", f"DiT {precision}", bench.config(dit, precision), bench.sizes.latent)
    yield Row("training", "a public number", 107.0, "images/s", PUBLIC)
    for precision, last in (("bf16", False), ("bf16", True), ("fp32", True)):
        config = bench.config(unet, precision, channels_last=last)
        name = f"U-Net {precision}{', channels last' if last else ''}"
        yield from train(bench, "training", name, config, bench.sizes.image)


def peak(bench: Bench) -> Iterator[Row]:
    """What the device does at its best, which MFU is a share of."""
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for what, measure in (("matrix product", best_matmul), ("convolution", best_convolution)):
            yield Row("peak", f"{what}, {precision}", measure(bench.device, dtype) / 1e12, "TFLOP/s")


def agreement(bench: Bench) -> Iterator[Row]:
    """The losses of a small network in fp32, against those of the CPU."""
    steps, found = bench.sizes.agreement_steps, list[list[float]]()
    config = bench.config(bench.sizes.small, "fp32")
    for device in (torch.device("cpu"), bench.device):
        with tempfile.TemporaryDirectory() as folder:
            worker = make_worker(Bench(device, bench.sizes), config, (3, 16, 16), Path(folder))
            meters = Meters(device)
            for _ in range(steps):
                worker.train_step(meters)
            worker.settle(meters)
            worker.close()
            found.append(worker.losses_since_checkpoint)
    for what, part, allowed in (
        ("first step", slice(0, 1), 1e-4),
        ("mean of the last tenth", slice(-max(1, steps // 10), None), 0.02),
    ):
        ours, theirs = (statistics.fmean(losses[part]) for losses in (found[1], found[0]))
        error = abs(ours - theirs) / theirs
        yield Row(
            "agreement", f"loss of {steps} steps, {what}", error, "relative", f"allowed {allowed:g}", error <= allowed
        )


def kept(bench: Bench) -> Iterator[Row]:
    """A checkpoint of the device's weights, moments and averages, written and read back bit by bit."""
    config = bench.config(bench.sizes.small, "fp32")
    with tempfile.TemporaryDirectory() as folder:
        worker, meters = make_worker(bench, config, (3, 16, 16), Path(folder)), Meters(bench.device)
        for _ in range(3):
            worker.train_step(meters)
        worker.settle(meters)
        since = time.perf_counter()
        worker.save_checkpoint()
        stalled = time.perf_counter() - since
        worker.close()
        checkpoint = Checkpoint(step_folder(worker.context.paths.checkpoints, 3))
        kinds = {"param": worker.masters.flats, **worker.ema.tracks, "exp_avg": worker.masters.moments("exp_avg")}
        same = all(
            torch.equal(fragment.of(flats).cpu(), checkpoint.read(kind, fragment.name, fragment.offset, fragment.numel))
            for kind, flats in kinds.items()
            for fragment in worker.masters.fragments
        )
    yield Row("kept", "checkpoint read back bit by bit", None, "", f"training waited {1e3 * stalled:.1f} ms", same)


def solvers(bench: Bench) -> Iterator[Row]:
    """Every solver and a likelihood with the network on the device, against the CPU; then the theory's own checks."""
    torch.manual_seed(0)
    network, shape = build_network(MLPConfig(width=256), (3, 8, 8)).eval(), (3, 8, 8)
    here = Denoiser(network, make_process(VpProcess()), "epsilon")
    chain = Denoiser(network, make_process(DdpmProcess()), "epsilon")
    there, chain_there = (
        network_on(denoiser, bench.device) for denoiser in (copy.deepcopy(here), copy.deepcopy(chain))
    )
    noise = ImageNoise(0, range(4), shape)
    for options in SOLVERS:
        kind = options.model_fields["kind"].default
        steps = {"num_steps": 10} if "num_steps" in options.model_fields else {}
        solver = SOLVER_ADAPTER.validate_python({"kind": kind, **steps})
        with torch.inference_mode():
            error = float((solve(there, noise, solver) - solve(here, noise, solver)).abs().max())
        yield Row("solvers", kind, error, "largest difference", "allowed 0.01, of [-1, 1]", error <= 0.01)
    x_0 = (torch.randint(0, 256, (4, *shape)).float() / 127.5) - 1
    eps, index = torch.randn(4, 9, *shape), torch.randint(2, 1001, (4, 8))
    with torch.inference_mode():
        ours, theirs = (
            bits_per_dim(estimate_vlb(ReverseKernel(each), x_0, index, eps).total, x_0[0].numel()).mean()
            for each in (chain_there, chain)
        )
    error = abs(float(ours / theirs) - 1)
    yield Row("solvers", "variational bound", error, "relative", "allowed 1e-4", error <= 1e-4)
    done = subprocess.run(
        [sys.executable, "-m", "diffusion.verify", "--quick"], capture_output=True, text=True, check=False
    )
    yield Row(
        "solvers",
        "diffusion.verify --quick, on this machine's CPU",
        None,
        "",
        done.stdout.splitlines()[-1],
        done.returncode == 0,
    )


def curve(bench: Bench) -> Iterator[Row]:
    """Milliseconds of one network evaluation for more and more rows: what batching requests is worth."""
    for name, network, shape in (
        ("DiT", bench.sizes.dit, bench.sizes.latent),
        ("U-Net", bench.sizes.unet, bench.sizes.image),
    ):
        built = build_network(network, shape).to(bench.device).eval()
        for rows in bench.sizes.curve:
            x, t = torch.randn(rows, *shape, device=bench.device), torch.rand(rows, device=bench.device)
            with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16):
                evaluate = partial(built, x, t, None)
                evaluate()
                seconds = bench.timed(evaluate, 5)
            yield Row("curve", f"{name} bf16, {rows} rows", 1e3 * seconds, "ms", f"{rows / seconds:.0f} rows/s")


def images(bench: Bench) -> Iterator[Row]:
    """Hours for 50,000 samples in 20 evaluations each and their Frechet moments, from a few of them."""
    shape, count = bench.sizes.image, bench.sizes.samples
    network = build_network(bench.sizes.unet, shape).to(bench.device).eval()
    denoiser = network_on(Denoiser(network, make_process(DdpmProcess()), "epsilon"), bench.device)
    solver = SOLVER_ADAPTER.validate_python({"kind": "dpmpp_2m", "num_steps": 20})
    project = torch.randn(math.prod(shape), 2048) / math.prod(shape) ** 0.5
    with torch.inference_mode():
        sampling = bench.timed(lambda: solve(denoiser, ImageNoise(0, range(count), shape), solver), 1)
        features = torch.randn(count, math.prod(shape)) @ project
        moments = bench.timed(lambda: Moments.of(features), 1)
    hours = 50_000 / count * (sampling + moments) / 3600
    yield Row(
        "images",
        "50,000 samples and their moments, extrapolated",
        hours,
        "hours",
        f"U-Net fp32, {count} timed: {sampling:.1f} s, moments {moments:.2f} s",
    )


def compiled(bench: Bench) -> Iterator[Row]:
    """torch.compile, which is worth its wait only in long runs."""
    if bench.is_cuda and find_spec("triton") is None:
        yield Row("compiled", "torch.compile", None, "", "skipped: no triton here")
        return
    for name, network, shape in (
        ("DiT", bench.sizes.dit, bench.sizes.latent),
        ("U-Net", bench.sizes.unet, bench.sizes.image),
    ):
        yield from train(
            bench, "compiled", f"{name} bf16, compiled", bench.config(network, "bf16", compile=True), shape
        )


def deepspeed(bench: Bench) -> Iterator[Row]:
    """DeepSpeed's engine on one rank at each stage: what its hooks, buckets and copies cost where nothing is shared."""
    if find_spec("deepspeed") is None:
        yield Row("deepspeed", "ZeRO 0 to 3", None, "", "skipped: DeepSpeed is not installed here")
        return
    for stage in range(4):  # stage 3 last: it changes torch for the whole process
        config = bench.config(bench.sizes.dit, "bf16", zero_stage=stage)
        yield from train(bench, "deepspeed", f"DiT bf16, ZeRO-{stage}", config, bench.sizes.latent, stage)


def others(bench: Bench) -> Iterator[Row]:
    """The loops of other projects around the same network."""
    from tests.benchmarks.other_trainers import LOOPS

    for precision in ("bf16",):
        config, shape = bench.config(bench.sizes.unet, precision), bench.sizes.image
        for name, make in LOOPS.items():
            try:
                theirs = make(build_network(config.network, shape), config, shape, bench.device)
            except ImportError as error:
                yield Row("others", name, None, "", f"skipped: {error}")
                continue
            with tempfile.TemporaryDirectory() as folder:
                worker, meters = make_worker(bench, config, shape, Path(folder)), Meters(bench.device)
                rates = in_turns(
                    bench, bench.sizes.rows, {"ours": partial(worker.train_step, meters), "theirs": theirs}
                )
                worker.close()
            ratios = [a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)]
            yield Row("others", f"{name}, U-Net {precision}", statistics.median(rates["theirs"]), "images/s")
            yield Row(
                "others", f"ours over {name}", statistics.median(ratios), "", f"{min(ratios):.3f} to {max(ratios):.3f}"
            )


PARTS = {
    each.__name__: each
    for each in (peak, training, agreement, kept, solvers, curve, images, deepspeed, compiled, others)
}


def measure(bench: Bench, parts: list[str], budget_s: float) -> Iterator[Row]:
    """The rows of all parts; a part that fails is a row, and so is one that there was no time for."""
    begun = time.monotonic()
    for name in parts:
        if time.monotonic() - begun > budget_s:
            yield Row(name, "not begun", None, "", f"the budget of {budget_s:.0f} s is spent")
            continue
        try:
            yield from PARTS[name](bench)
        except Exception as error:  # noqa: BLE001 - whatever one part finds, the others still run
            yield Row(
                name,
                "failed",
                None,
                "",
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                False,
            )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 if a check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cuda or cpu (default: a GPU if there is one)",
    )
    add("--only", action="append", choices=PARTS, metavar="PART", help=f"{', '.join(PARTS)}; repeatable (default all)")
    add("--tiny", action="store_true", help="sizes for a CPU: shows that the script works, measures nothing of worth")
    add("--budget", type=float, default=220.0, metavar="S", help="begin no part after so many seconds (default 220)")
    add("--json", type=Path, default=Path("gpu.json"), metavar="FILE", help="where the rows go (default gpu.json)")
    options = parser.parse_args(arguments)
    bench = Bench(torch.device(options.device), TINY if options.tiny else FULL)
    full_precision()
    if not dist.is_initialized():
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        dist.init_process_group("nccl" if bench.is_cuda else "gloo", store=HashStore(), rank=0, world_size=1)
    name = torch.cuda.get_device_name(bench.device) if bench.is_cuda else platform.processor() or platform.machine()
    described = {
        "device": name,
        "torch": torch.__version__,
        "tiny": options.tiny,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(f"{name}, torch {torch.__version__}")
    rows = list[Row]()
    for row in measure(bench, options.only or list(PARTS), options.budget):
        rows.append(row)
        options.json.write_text(json.dumps({**described, "rows": [asdict(each) for each in rows]}, indent=2) + "\n")
        verdict = "" if row.passed is None else "ok" if row.passed else "FAILED"
        value = "" if row.value is None else f"{row.value:.4g} {row.unit}"
        print(f"{row.part:<10} {row.what:<52} {value:>24}  {verdict:<6} {row.note}".rstrip(), flush=True)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # gloo's threads let go of Python objects late
