"""The main job: train, evaluate and register on the local stack, then serve the model and sample from it.

Every step is a command that a user could type; this module runs them in order and checks their results.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import lifecycle, machine, processes, screen, signals
from infra.stack import Stack, StackError, environment, load, save

DELIVERED_FILES = ("report.html", "samples.npy", "summary.json")  # of a run's results; the summary is copied last
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TRAINER_STOP_TIMEOUT_S = 90.0  # it may write a checkpoint first
TRAINER_END_TIMEOUT_S = 10.0
RESPONSE_TIMEOUT_S = 120.0


class CommandError(RuntimeError):
    """A command of the job failed, and has printed why.

    Attributes:
        exit_code: Its exit code, or 128 + n when signal n ended it.
    """

    def __init__(self, returncode: int) -> None:
        """Takes the return code as `subprocess` gives it."""
        self.exit_code = returncode if returncode >= 0 else 128 - returncode
        super().__init__(f"exit code {self.exit_code}")


@dataclass(frozen=True)
class MainJob:
    """The main job of one configuration in one checkout.

    Attributes:
        root: The checkout.
        config: The run file.
        overrides: `path=value` changes to it.
        keep: Whether to leave everything running at the end.
    """

    root: Path
    config: Path
    overrides: tuple[str, ...] = ()
    keep: bool = False

    @property
    def var(self) -> Path:
        """The folder with the state of the stack and of the runs."""
        return self.root / "var"

    @property
    def out(self) -> Path:
        """The folder with the results for the user."""
        return self.root / "out"

    def trainer(self, *options: str) -> list[str]:
        """The trainer's command line, with more options."""
        overrides = (word for change in self.overrides for word in ("--set", change))
        return [sys.executable, "-m", "trainer", "--config", str(self.config), *overrides, *options]


@dataclass(frozen=True)
class Run:
    """The training run that a configuration names.

    Attributes:
        name: Its name.
        results: The folder of its results.
        done: Whether they are complete.
    """

    name: str
    results: Path
    done: bool

    @property
    def summary(self) -> dict[str, Any]:
        """Its summary.json: the metrics and the registered model."""
        return json.loads((self.results / "summary.json").read_text())


def run(job: MainJob) -> None:
    """Runs the job, or reports that it is done already.

    Raises:
        CommandError: The trainer failed (2: bad input).
        StackError: The stack or the sampler did not answer as it should.
    """
    training_run = describe_run(job)
    delivered = training_run.done and _is_delivered(job, training_run)
    if delivered:
        print(f"this run is done ({training_run.name}); its results are in out/")
        print("to start another: make run ARGS='--set seed=1' (or --set run.name=…)")
    if delivered and not job.keep:
        return
    with _stack(job) as stack:
        env = environment(stack, job.root, job.var, machine.gpus())
        if not delivered:
            _train(job, env)
        png = _sample_over_http(job, stack, env, training_run.summary)
        files = _deliver(job, training_run, png)
        print(screen.format_summary(training_run.summary, [file.relative_to(job.root) for file in files]))
    kept = load(job.var)
    print(screen.format_addresses(kept) if kept else screen.MLFLOW_HINT)


def describe_run(job: MainJob) -> Run:
    """Asks the trainer, without starting anything, which run the configuration names and whether it is done.

    Raises:
        CommandError: The trainer rejects the configuration.
    """
    env = os.environ | {"DUALVIEW_STORAGE": str(job.var / "runs")}
    dry_run = subprocess.run(
        job.trainer("--dry-run", "--json"), cwd=job.root, env=env, stdout=subprocess.PIPE, check=False
    )
    if dry_run.returncode:
        raise CommandError(dry_run.returncode)
    description = json.loads(dry_run.stdout)["run"]
    return Run(description["name"], Path(description["directory"]) / "results", description["state"] == "done")


def ask_for_images(url: str, model: str, package_sha256: str) -> bytes:
    """Requests 64 images of a fixed seed from the served model; returns them as one PNG.

    Args:
        url: The sampler's address.
        model: The model by name and alias, `digits@champion`.
        package_sha256: Digest that the served package must have.

    Raises:
        StackError: No answer, another package's images, or not a PNG.
    """
    body = json.dumps({"model": model, "n": 64, "seed": 0, "format": "png"}).encode()
    try:
        with lifecycle.fetch(
            f"{url}/v1/images", {"Content-Type": "application/json"}, body, RESPONSE_TIMEOUT_S
        ) as answer:
            png, package_of_answer = answer.read(), answer.headers["X-Package-SHA256"]
    except OSError as error:
        raise StackError(f"the sampler at {url} did not answer: {error}") from error
    if package_of_answer != package_sha256:
        raise StackError(f"{model} at {url} is package {package_of_answer}, not this run's {package_sha256}")
    if not png.startswith(PNG_SIGNATURE):
        raise StackError(f"the sampler at {url} answered something that is not a PNG")
    return png


@contextmanager
def _stack(job: MainJob) -> Iterator[Stack]:
    """The stack to use: one that is kept running, or a new one, which is stopped at the end unless `job.keep`."""
    running = load(job.var)
    if running is not None and running.kept and running.alive():
        print(f"✓ Ray and MLflow are running, MLflow at {running.tracking_uri}", flush=True)
        yield running
        return
    with screen.phase("starting Ray and MLflow") as done:
        stack = lifecycle.up(job.root, job.var, kept=False)
        done(f"Ray and MLflow started, MLflow at {stack.tracking_uri}")
    kept = False
    try:
        yield stack
        kept = job.keep
    finally:
        with signals.uninterrupted():
            _leave_up(job, stack) if kept else _stop(job)


def _leave_up(job: MainJob, stack: Stack) -> None:
    save(dataclasses.replace(stack, kept=True), job.var)


def _stop(job: MainJob) -> None:
    with screen.phase("stopping") as done:
        lifecycle.stop(job.var)
        done("Ray, MLflow and the sampler stopped")


def _train(job: MainJob, env: Mapping[str, str]) -> None:
    """Runs the trainer, which shows its own progress, on this terminal.

    It is in its own process group, so that Ctrl-C reaches it only once, through this process.
    """
    trainer = subprocess.Popen(job.trainer(), cwd=job.root, env=env, stdin=subprocess.DEVNULL, process_group=0)
    try:
        returncode = trainer.wait()
    except BaseException:
        _interrupt(trainer)
        print("interrupted; the same command resumes from the last checkpoint", flush=True)
        raise
    if returncode:
        raise CommandError(returncode)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Asks the trainer to stop; a further signal, or a long wait, asks it to end at once, and ends it after that."""
    for timeout_s in (TRAINER_STOP_TIMEOUT_S, TRAINER_END_TIMEOUT_S):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt, SystemExit):
            process.wait(timeout_s)
            return
    process.kill()
    process.wait()


def _sample_over_http(job: MainJob, stack: Stack, env: Mapping[str, str], summary: Mapping[str, Any]) -> bytes | None:
    """Deploys the registered model and samples a PNG from it; None for a run that registers no model."""
    if summary["registered_model"] is None:
        return None
    model = f"{summary['registered_model']}@{summary['alias']}"
    with screen.phase(f"deploying {model}") as done:
        _serve(job, stack, env, model)
        done(f"{model} served at {stack.sampler}")
    with screen.phase("sampling 64 images") as done:
        png = ask_for_images(stack.sampler, model, summary["package_sha256"])
        done("64 images sampled over HTTP")
    return png


def _serve(job: MainJob, stack: Stack, env: Mapping[str, str], model: str) -> None:
    options = ("--model", model, "--port", str(stack.ports["serve"]), "--tracking-uri", stack.tracking_uri, "--detach")
    log = job.var / "log" / "sampler.log"
    log.unlink(missing_ok=True)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
        command = [sys.executable, "-m", "sampler", "serve", *options]
        deployment = subprocess.run(
            command, cwd=job.root, env=env, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if deployment.returncode:
        raise StackError(f"the sampler was not deployed; {log} ends:\n{processes.last_lines(log)}")


def _deliver(job: MainJob, training_run: Run, png: bytes | None) -> Sequence[Path]:
    """Copies the results to `out/`; the summary last, since its presence means that they are complete."""
    job.out.mkdir(exist_ok=True)
    files = [job.out / name for name in DELIVERED_FILES]
    files[-1].unlink(missing_ok=True)
    if png is not None:
        files.insert(0, _png_file(job, training_run))
        files[0].write_bytes(png)
    for file in files[-len(DELIVERED_FILES) :]:
        shutil.copyfile(training_run.results / file.name, file)
    return files


def _is_delivered(job: MainJob, training_run: Run) -> bool:
    summary = job.out / "summary.json"
    same = summary.is_file() and summary.read_bytes() == (training_run.results / "summary.json").read_bytes()
    return same and (training_run.summary["registered_model"] is None or _png_file(job, training_run).is_file())


def _png_file(job: MainJob, training_run: Run) -> Path:
    return job.out / f"{training_run.summary['registered_model']}.png"
