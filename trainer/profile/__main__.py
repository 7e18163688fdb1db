"""The command `python -m trainer.profile`.

The steps are those of `python -m trainer`, taken by the worker's own code. The run's folder is not touched.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from diffusion.command import end, run_command
from diffusion.json_text import json_text
from trainer.config.load import load_config
from trainer.config.run_config import RunConfig
from trainer.errors import InputError, RunFailedError
from trainer.files import check_output
from trainer.profile.result import Profile, show
from trainer.registry.lookup import package_digest

EXAMPLES = """\
examples:
  python -m trainer.profile configs/digits.yaml
  python -m trainer.profile configs/digits.yaml --steps 50 --set parallel.workers=1 --out profiled
  python -m trainer.profile configs/digits.yaml --set training.precision=bf16 --json

After some steps to warm up it times --steps steps with nothing beside them, and then as many under the profiler, with a
checkpoint at their end. The table is of the profiled steps, which the profiler slows down; images/s are of the others.
The trace opens in https://ui.perfetto.dev or chrome://tracing.

exit codes: 0 done; 2 bad input; 1 anything else
"""
NEVER = 10**9
POLL_S = 0.1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m trainer.profile",
        description="Show where a training step's time goes, and how much of the device's best it reaches.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("config", type=Path, metavar="CONFIG", help="YAML run file, such as configs/digits.yaml")
    add("--steps", type=int, default=20, metavar="N", help="steps to profile (default 20)")
    add("--set", dest="sets", action="append", default=[], metavar="PATH=VALUE", help="change a setting; repeatable")
    add("--out", type=Path, metavar="DIR", help="folder for trace.json and profile.json (default profile-EXPERIMENT)")
    add("--json", action="store_true", help="print JSON instead of a table")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    return run_command(lambda: _profile(options), InputError)


def _profile(options: argparse.Namespace) -> int:
    if options.steps < 1:
        raise InputError(f"--steps = {options.steps}; allowed: at least 1")
    config = load_config(options.config, options.sets, package_digest)
    out: Path = options.out or Path(f"profile-{config.run.experiment}")
    check_output(out, "--out", own=("profile.json", "trace.json"))
    try:
        profile_ranks(config, options.steps, out)
    except RunFailedError as error:
        return end(1, f"failed: {error}")
    values = json.loads((out / "profile.json").read_text())
    if options.json:
        print(json_text(values, indent=2))
        return 0
    from diffusion.terminal import PlainConsole

    show(
        Profile(**{name: values[name] for name in Profile.__dataclass_fields__}),
        PlainConsole(soft_wrap=True),
    )
    print(
        f"trace: {out / 'trace.json'} (ui.perfetto.dev or chrome://tracing opens it); numbers: {out / 'profile.json'}"
    )
    return 0


def profile_ranks(config: RunConfig, steps: int, out: Path) -> None:
    """Prepare the data, and let each rank take its steps in a process of its own.

    Raises:
        InputError: the data, or the device that the configuration asks for, are not there.
        RunFailedError: a rank did not get through.
    """
    from trainer.data.prepare import prepare
    from trainer.driver.data_checks import check_data

    dataset = prepare(config.data, Path(config.run.storage or ""))
    check_data(config, dataset)
    run = config.run.model_copy(update={"log_every": NEVER, "checkpoint_every": NEVER, "evaluate_every": None})
    training = config.training.model_copy(update={"steps": NEVER})
    profiled = config.model_copy(update={"run": run, "training": training})
    world = config.parallel.max_workers
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "config": profiled.model_dump(mode="json"),
            "device": _device(config),
            "dataset": str(dataset.folder),
            "folder": folder,
            "out": str(out.absolute()),
            "steps": steps,
            "world": world,
        }
        ranks = list[subprocess.Popen[str]]()
        try:
            for rank in range(world):
                ranks.append(_start({**job, "rank": rank}, Path(folder) / f"log-{rank}"))
            failed = _first_failure(ranks)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        if failed is not None:
            lines = (Path(folder) / f"log-{failed}").read_text().strip().splitlines()
            raise RunFailedError(f"rank {failed}: {lines[-1] if lines else ranks[failed].returncode}")


def _first_failure(ranks: "list[subprocess.Popen[str]]") -> int | None:
    """Wait for all ranks, or for the first that fails, for which the others might wait in vain."""
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None or None not in codes:
            return failed
        time.sleep(POLL_S)


def _start(job: dict[str, Any], log: Path) -> "subprocess.Popen[str]":
    """A rank, and its job."""
    command = [sys.executable, "-m", "trainer.profile.rank"]
    with log.open("w") as file:
        rank = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, text=True)
    assert rank.stdin is not None
    rank.stdin.write(json.dumps(job))
    rank.stdin.close()
    return rank


def _device(config: RunConfig) -> str:
    """cpu or cuda; `auto` takes GPUs where this machine has one for every worker.

    Raises:
        InputError: GPUs are asked for, and there are fewer than workers.
    """
    import torch

    enough = torch.cuda.device_count() >= config.parallel.max_workers
    if config.parallel.device == "cuda" and not enough:
        raise InputError(
            f"parallel.device = cuda: this machine has {torch.cuda.device_count()} GPUs for "
            f"{config.parallel.max_workers} workers; allowed: fewer workers, or cpu"
        )
    return "cuda" if enough and config.parallel.device != "cpu" else "cpu"


if __name__ == "__main__":
    sys.exit(main())
