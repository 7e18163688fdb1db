"""The training loop on real ranks with DeepSpeed and gloo, without Ray: processes that wait for one job after another.

Starting ranks, and most of all importing what they need, takes many times as long as the few steps of a test: ranks of
one world and ZeRO stage are started once and used again. Not at stage 3, which changes torch for its whole process and
leaves state of earlier engines behind: there each job has processes of its own. With parallel.device = cuda, each rank
has a GPU, and NCCL.

A job is a JSON line on each rank's standard input, and `done` on its standard output says that it went well.
"""

import gc
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from tests.conftest import ROOT
from trainer.config.load import load_config
from trainer.data.prepare import prepare
from trainer.run import attempt
from trainer.run.paths import RunPaths
from trainer.worker import loop
from trainer.worker.batch_plan import BatchPlan, PlannedRows
from trainer.worker.loop import run, start_worker
from trainer.worker.step import Worker, WorkerContext

DRAWN = BatchPlan.rows
TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Job:
    """One run of the loop.

    Attributes:
        file: the run file.
        sets: `PATH=VALUE` on top of it.
        spoilt: steps at which the noise of a row of the last rank is NaN, as a broken device would have it.
        reload: nothing is trained; what was loaded is written to the run's folder `reloaded` again.
    """

    file: str
    sets: list[str]
    spoilt: list[int] = field(default_factory=list)
    reload: bool = False


class Ranks:
    """Ranks of one world, started with the first job and again after one that failed."""

    def __init__(self, world: int, device: str = "cpu", reuse: bool = True) -> None:
        """Nothing is started yet; without `reuse`, ranks end with their job."""
        self._world, self._device, self._reuse = world, device, reuse
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []
        self._answers: queue.Queue[tuple[int, str]] = queue.Queue()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def pids(self) -> list[int]:
        """The ranks' processes."""
        return [process.pid for process in self._processes]

    def run(self, job: Job) -> RunPaths:
        """Do a job on all ranks; the run's files."""
        config = load_config(Path(job.file), job.sets)
        paths = RunPaths.of(config)
        paths.root.mkdir(parents=True, exist_ok=True)
        prepare(config.data, Path(config.run.storage or ""))
        attempt.begin_attempt(paths.attempt, "ranks")
        if not self._processes:
            self._start()
        for process in self._processes:
            assert process.stdin is not None
            print(json.dumps(asdict(job)), file=process.stdin, flush=True)
        for _ in self._processes:
            try:
                rank, answer = self._answers.get(timeout=TIMEOUT_S)
            except queue.Empty:
                rank, answer = -1, f"no answer within {TIMEOUT_S:.0f} s"
            if answer != "done":
                self.close()
                raise AssertionError(f"rank {rank}: {answer}\n{job}")
        if not self._reuse:
            self.close()
        return paths

    def _start(self) -> None:
        self._answers = queue.Queue()
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(self._world):
            command = [sys.executable, "-m", "tests.integration.ranks", str(rank), str(self._world), self._device]
            process = subprocess.Popen(
                [*command, f"{self._folder.name}/store"],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            self._processes.append(process)
            thread = threading.Thread(target=self._listen, args=(rank, process, self._answers), daemon=True)
            thread.start()
            self._threads.append(thread)

    @staticmethod
    def _listen(rank: int, process: "subprocess.Popen[str]", answers: "queue.Queue[tuple[int, str]]") -> None:
        assert process.stdout is not None
        lines = list[str]()
        for line in process.stdout:
            if line == "done\n":
                answers.put((rank, "done"))
                lines.clear()
            else:
                lines.append(line)
        answers.put((rank, f"ended:\n{''.join(lines)}"))

    def close(self) -> None:
        """End the processes; they hold nothing that is not in files."""
        for process, thread in zip(self._processes, self._threads, strict=True):
            process.kill()
            process.wait()
            thread.join()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):  # of a job that it did not read
                    pipe.close()
        self._processes.clear()
        self._threads.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def spoil(bad: set[int]) -> None:
    """Make the draws of these steps NaN in the row before the last of the global batch; all others are as they are."""

    def rows(draws: BatchPlan, step: int, first: int, count: int) -> PlannedRows:
        made, row = DRAWN(draws, step, first, count), draws.training.global_batch_size - 2
        if step not in bad or not first <= row < first + count:
            return made
        eps = made.eps.clone()
        eps[row - first] = torch.nan
        return replace(made, eps=eps)

    BatchPlan.rows = rows  # pyright: ignore[reportAttributeAccessIssue]


def write_again(place: WorkerContext) -> None:
    """Load the newest checkpoint, and write it elsewhere."""
    worker = start_worker(place)
    worker.context = replace(place, paths=RunPaths(place.paths.root / "reloaded"))
    worker.save_checkpoint()
    worker.close()
    worker.engine.destroy()


def do(job: Job, device: torch.device) -> None:
    """One job, on this rank."""
    config = load_config(Path(job.file), job.sets)
    dataset = prepare(config.data, Path(config.run.storage or "")).folder
    place = WorkerContext(config, RunPaths.of(config), dataset, device, "ranks")
    if job.reload:
        write_again(place)
        return
    spoil(set(job.spoilt))
    workers = list[Worker]()

    def start(context: WorkerContext) -> Worker:
        workers.append(start_worker(context))
        return workers[-1]

    loop.start_worker = start
    run(place, lambda _: None)
    # an engine that the garbage collector ends during the next job would end that job's hooks too
    workers[-1].engine.destroy()
    workers.clear()
    gc.collect()


def rank_main(rank: int, world: int, kind: str, store: str) -> None:
    """Wait for jobs until standard input ends."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank if kind == "cuda" else 0)}
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, store=FileStore(store, world), rank=rank, world_size=world)
    for line in sys.stdin:
        try:
            do(Job(**json.loads(line)), device)
            dist.barrier()
        except BaseException:  # noqa: BLE001 - the test is told, and ends this process and its peers
            traceback.print_exc()
            sys.stdout.flush()
            os._exit(1)
        print("done", flush=True)
    # gloo's threads let go of Python objects late; one that does so in a finalising interpreter aborts the process
    os._exit(0)


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
