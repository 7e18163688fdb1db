"""The main job: train, score and register on the local stack, then serve the model and ask it for images.

Every step is a command that a person could type; this module puts them in order and checks what comes back.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import lifecycle, machine, processes, screen, signals
from infra.stack import Stack, StackError, environment, load, save

COPIED = ("report.html", "samples.npy", "summary.json")  # of a run's results, the last one last
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TRAINER_END_LIMIT_S = 15.0
ANSWER_LIMIT_S = 120.0


class CommandError(RuntimeError):
    """A command that the job is made of failed, and has said why on the terminal.

    Attributes:
        exit_code: Its exit code, or 128 + n when signal n ended it.
    """

    def __init__(self, returncode: int) -> None:
        """Takes the return code as `subprocess` gives it."""
        self.exit_code = returncode if returncode >= 0 else 128 - returncode
        super().__init__(f"exit code {self.exit_code}")


@dataclass(frozen=True)
class Job:
    """The main job of one configuration in one checkout.

    Attributes:
        root: The checkout.
        config: The run file.
        sets: `path=value` changes to it.
        keep: Leave everything up at the end.
    """

    root: Path
    config: Path
    sets: tuple[str, ...] = ()
    keep: bool = False

    @property
    def var(self) -> Path:
        """State of the stack and of the runs."""
        return self.root / "var"

    @property
    def out(self) -> Path:
        """What a person looks at."""
        return self.root / "out"

    def trainer(self, *options: str) -> list[str]:
        """The trainer's command line."""
        sets = (word for change in self.sets for word in ("--set", change))
        return [sys.executable, "-m", "trainer", "--config", str(self.config), *sets, *options]


@dataclass(frozen=True)
class Run:
    """The training run that a configuration names: where its results are, and whether there are any yet."""

    name: str
    results: Path
    done: bool

    @property
    def summary(self) -> dict[str, Any]:
        """The metrics and the registered model."""
        return json.loads((self.results / "summary.json").read_text())


def run(job: Job) -> None:
    """Does the job, or says that it is done.

    Raises:
        CommandError: The trainer failed (2: bad input).
        StackError: The stack or the sampler did not answer as it should.
    """
    found = inspect(job)
    delivered = found.done and _is_delivered(job, found)
    if delivered:
        print(f"this run is done ({found.name}); its results are in out/")
        print("to start another: make run ARGS='--set seed=1' (or --set run.name=…)")
    if delivered and not job.keep:
        return
    with _stack(job) as stack:
        env = environment(stack, job.root, job.var, machine.gpus())
        if not delivered:
            _train(job, env)
        picture = _picture(job, stack, env, found.summary)
        files = _deliver(job, found, picture)
        print(screen.closing(found.summary, [file.relative_to(job.root) for file in files]))
    kept = load(job.var)
    print(screen.where(kept) if kept else screen.LATER)


def inspect(job: Job) -> Run:
    """Asks the trainer, without starting anything, which run the configuration names and how far it got.

    Raises:
        CommandError: The configuration is refused.
    """
    env = os.environ | {"DUALVIEW_STORAGE": str(job.var / "runs")}
    asked = subprocess.run(
        job.trainer("--dry-run", "--json"), cwd=job.root, env=env, stdout=subprocess.PIPE, check=False
    )
    if asked.returncode:
        raise CommandError(asked.returncode)
    described = json.loads(asked.stdout)["run"]
    return Run(described["name"], Path(described["directory"]) / "results", described["state"] == "done")


def ask_for_images(url: str, model: str, package_sha256: str) -> bytes:
    """The PNG of 64 images with a fixed seed, drawn by the served model.

    Args:
        url: The sampler's address.
        model: The model by name and alias, `digits@champion`.
        package_sha256: Digest of the package that must have drawn them.

    Raises:
        StackError: No answer, another package's answer, or no PNG.
    """
    body = json.dumps({"model": model, "n": 64, "seed": 0, "format": "png"}).encode()
    try:
        with lifecycle.fetch(f"{url}/v1/images", {"Content-Type": "application/json"}, body, ANSWER_LIMIT_S) as answer:
            picture, drawn_by = answer.read(), answer.headers["X-Package-SHA256"]
    except OSError as error:
        raise StackError(f"the sampler at {url} did not answer: {error}") from error
    if drawn_by != package_sha256:
        raise StackError(f"{model} at {url} is package {drawn_by}, not this run's {package_sha256}")
    if not picture.startswith(PNG_SIGNATURE):
        raise StackError(f"the sampler at {url} answered something that is not a PNG")
    return picture


@contextmanager
def _stack(job: Job) -> Iterator[Stack]:
    """A stack to work on: one that was kept is used and left; a new one is stopped at the end, unless to be kept."""
    running = load(job.var)
    if running is not None and running.kept and running.alive():
        print(f"✓ Ray and MLflow are up, MLflow at {running.tracking_uri}", flush=True)
        yield running
        return
    with screen.phase("starting Ray and MLflow") as done:
        stack = lifecycle.up(job.root, job.var, kept=False)
        done(f"Ray and MLflow up, MLflow at {stack.tracking_uri}")
    kept = False
    try:
        yield stack
        kept = job.keep
    finally:
        with signals.uninterrupted():
            _leave_up(job, stack) if kept else _stop(job)


def _leave_up(job: Job, stack: Stack) -> None:
    save(dataclasses.replace(stack, kept=True), job.var)


def _stop(job: Job) -> None:
    with screen.phase("stopping") as done:
        lifecycle.stop(job.var)
        done("Ray, MLflow and the sampler stopped")


def _train(job: Job, env: Mapping[str, str]) -> None:
    """Runs the trainer, which draws its own progress, on this terminal.

    It has a process group of its own, so that Ctrl-C reaches it once, from here.
    """
    trainer = subprocess.Popen(job.trainer(), cwd=job.root, env=env, stdin=subprocess.DEVNULL, process_group=0)
    try:
        returncode = trainer.wait()
    except BaseException:
        with signals.uninterrupted():
            _interrupt(trainer)
        print("interrupted; the same command goes on from the last checkpoint", flush=True)
        raise
    if returncode:
        raise CommandError(returncode)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(TRAINER_END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _picture(job: Job, stack: Stack, env: Mapping[str, str], summary: Mapping[str, Any]) -> bytes | None:
    """Deploys the registered model and asks it for images; None for a run that registers no model."""
    if summary["registered_model"] is None:
        return None
    model = f"{summary['registered_model']}@{summary['alias']}"
    with screen.phase(f"deploying {model}") as done:
        _serve(job, stack, env, model)
        done(f"{model} served at {stack.sampler}")
    with screen.phase("asking for 64 images") as done:
        picture = ask_for_images(stack.sampler, model, summary["package_sha256"])
        done("64 images over HTTP")
    return picture


def _serve(job: Job, stack: Stack, env: Mapping[str, str], model: str) -> None:
    options = ("--model", model, "--port", str(stack.ports["serve"]), "--tracking-uri", stack.tracking_uri, "--detach")
    log = job.var / "log" / "sampler.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "sampler", "serve", *options]
        served = subprocess.run(command, cwd=job.root, env=env, stdout=output, stderr=subprocess.STDOUT, check=False)
    if served.returncode:
        raise StackError(f"the sampler was not deployed; {log} ends:\n{processes.last_lines(log)}")


def _deliver(job: Job, found: Run, picture: bytes | None) -> Sequence[Path]:
    """Copies the results to `out/`; the summary last, since its presence means that the others are there."""
    job.out.mkdir(exist_ok=True)
    files = [job.out / name for name in COPIED]
    files[-1].unlink(missing_ok=True)
    if picture is not None:
        files.insert(0, _picture_file(job, found))
        files[0].write_bytes(picture)
    for file in files[-len(COPIED) :]:
        shutil.copyfile(found.results / file.name, file)
    return files


def _is_delivered(job: Job, found: Run) -> bool:
    summary = job.out / "summary.json"
    same = summary.is_file() and summary.read_bytes() == (found.results / "summary.json").read_bytes()
    return same and (found.summary["registered_model"] is None or _picture_file(job, found).is_file())


def _picture_file(job: Job, found: Run) -> Path:
    return job.out / f"{found.summary['registered_model']}.png"
