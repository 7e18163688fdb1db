"""`python -m tests.benchmarks.queue_scale [--ray]`: the queue with thousands of jobs.

One round of admission for 1,000, 3,000 and 10,000 waiting jobs of 200 shapes on 1,000 nodes with 600 running jobs, and
with all shapes distinct; 200 gangs dispatched onto a Ray that accepts everything; `list` beside 100,000 finished jobs;
20 clients that submit at once. With --ray, on the local stack (`make up`, `source var/stack.env`): the time from a
stored row to the command's first line, beside that from a bare `ray job submit`'s request. Results go to
docs/benchmarks.md by hand, with machine and date.
"""

import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ray.job_submission import JobSubmissionClient
from sqlalchemy import insert

from cluster.admission import Policy, Running, Waiting, decide
from cluster.database.tables import Job
from cluster.dispatcher import Dispatcher
from cluster.placement import Node
from cluster.resources import DRIVER, Bundle, Shape
from cluster.snapshot import archive_path, create, keep
from cluster.spec import JobSpec
from cluster.store import Store
from tests.benchmarks.timing import quartiles
from tests.cluster.test_dispatcher import Ear, FakeRay

NODES, RUNNING, SHAPES, REPEATS = 1000, 600, 200, 7
NOW = 20_000.0


def cluster(chance: random.Random) -> tuple[list[Node], list[Running]]:
    """Half of the nodes have eight GPUs; each running job has three quarters of one."""
    nodes = [Node(f"n{index}", {"CPU": 64.0, "GPU": 8.0 * (index % 2), "memory": 2.0**41}) for index in range(NODES)]
    running: list[Running] = []
    for index, row in enumerate(chance.sample(range(NODES), RUNNING)):
        ends_at = chance.choice([None, NOW + chance.random() * 1e4])
        usage = {f"n{row}": {"CPU": 48.0, "GPU": 8.0 * (row % 2)}}
        queue, rank = f"q{chance.randrange(5)}", chance.randrange(4)
        running.append(Running(10**6 + index, usage, 0.0, ends_at, rank, queue))
    return nodes, running


def jobs(chance: random.Random, count: int, shapes: int) -> list[Waiting]:
    """Gangs of 1 to 64 bundles, in five queues, of twenty users."""
    made: list[Shape] = []
    for index in range(shapes):
        size, gpus = chance.choice([1, 1, 2, 4, 8, 16, 64]), chance.choice([0, 0, 1, 1, 2, 4, 8])
        resources = {"CPU": chance.randint(1, 32) + index % 997 / 1000, **({"GPU": float(gpus)} if gpus else {})}
        made.append(Shape.of([[Bundle(resources=resources)] * size], DRIVER))
    return [
        Waiting(
            index + 1, made[index] if shapes == count else chance.choice(made), chance.randrange(6),
            f"q{chance.randrange(5)}", f"u{chance.randrange(20)}", chance.random() * 1e4,
            max_runtime_s=chance.choice([None, 3600.0, 7200.0]),
        )
        for index in range(count)
    ]  # fmt: skip


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def show(name: str, seconds: Sequence[float], unit: str = "s", scale: float = 1.0) -> None:
    print(f"{name:64} {quartiles([each * scale for each in seconds])} {unit}", flush=True)


def admission() -> None:
    """Rounds of admission."""
    chance = random.Random(0)
    nodes, running = cluster(chance)
    for count, shapes in ((1000, SHAPES), (3000, SHAPES), (10_000, SHAPES), (10_000, 10_000)):
        waiting = jobs(chance, count, shapes)
        for forecasts in (0, Policy().forecasts):  # of which the dispatcher makes one in twenty
            policy = Policy(max_attempts=10**6, forecasts=forecasts)
            rounds = [timed(lambda: decide(nodes, running, waiting, {}, policy, NOW)) for _ in range(REPEATS)]  # noqa: B023
            show(f"a round: {count} jobs of {shapes} shapes, {forecasts} of them forecast", rounds)


def spec(number: int) -> JobSpec:
    return JobSpec(
        name=f"job{number}",
        command=["works"],
        snapshot="0" * 64,
        driver=Bundle(resources={"CPU": 1.0}),
        key=str(number),
    )


def dispatch(folder: Path) -> None:
    """200 gangs onto a Ray that accepts everything, on disk."""
    rates: list[float] = []
    for turn in range(3):
        store = Store.open(f"sqlite:///{folder}/dispatch{turn}/queue.db")
        store.submit_all([spec(number) for number in range(200)])
        ray = FakeRay({"works": []}, runs=10**9, cpus=200.0)
        dispatcher = Dispatcher(store, ray, lambda _: None, Ear())
        rates.append(200 / timed(dispatcher.step))
        assert len(ray.started) == 200
    show("200 gangs dispatched", rates, "gangs/s")


def finished_jobs(url: str, count: int) -> None:
    """A queue with this many finished jobs."""
    store = Store.open(url)
    fields = spec(0).model_dump() | {"state": "succeeded", "reason": "exit 0", "reason_code": "", "submitted_at": 1.0}
    rows = [{**fields, "after": {}, "name": f"job{number}", "ended_at": 2.0} for number in range(count)]
    with store.session() as session:
        session.execute(insert(Job), rows)


def listing(folder: Path) -> None:
    """`list` beside 100,000 finished jobs and beside none, interleaved."""
    urls = {count: f"sqlite:///{folder}/list{count}/queue.db" for count in (1, 100_000)}
    for count, url in urls.items():
        finished_jobs(url, count)
    found: dict[int, list[float]] = {count: [] for count in urls}
    for _ in range(REPEATS):
        for count, url in urls.items():
            command = [sys.executable, "-m", "cluster", "--store", url, "list"]
            found[count].append(timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)))  # noqa: B023
    for count, seconds in found.items():
        show(f"list beside {count} finished jobs, with the interpreter's start", seconds)
    show("the difference", [b - a for a, b in zip(found[1], found[100_000], strict=True)], "ms", 1e3)


def client(arguments: tuple[str, int]) -> list[int]:
    """Submit ten jobs, one at a time."""
    url, number = arguments
    store = Store.open(url, create=False)
    return [store.submit(spec(number * 10 + each)).id for each in range(10)]


def clients(folder: Path) -> None:
    """20 processes that submit at once."""
    url = f"sqlite:///{folder}/clients/queue.db"
    Store.open(url)
    began = time.perf_counter()
    with ProcessPoolExecutor(20) as pool:
        ids = [job for found in pool.map(client, [(url, number) for number in range(20)]) for job in found]
    print(f"20 clients submitted {len(set(ids))} of 200 jobs in {time.perf_counter() - began:.1f} s")


def latency(folder: Path) -> None:
    """From the stored row to the command's first line, and from Ray's own request to it; interleaved."""
    client, code = JobSubmissionClient(), folder / "code"
    code.mkdir()
    (code / "README").write_text("a job needs no more\n")
    archive = archive_path(folder, create(code, ["README"], folder))
    store = Store.open(f"sqlite:///{folder}/latency/queue.db")
    keep(archive, store.files)
    command = [sys.executable, "-m", "cluster", "--store", f"sqlite:///{store.anchor}", "dispatch"]
    dispatcher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(5)
    found: dict[str, list[float]] = {"ray job submit": [], "the queue": []}
    try:
        for turn in range(2 * REPEATS + 2):
            marker, name = folder / f"began{turn}", list(found)[turn % 2]
            words = ["bash", "-c", f"date +%s.%N > {marker}.part; mv {marker}.part {marker}; sleep 1"]
            began = time.time()
            if turn % 2:
                store.submit(spec(turn).model_copy(update={"command": words, "snapshot": archive.stem}))
            else:
                client.submit_job(entrypoint=shlex.join(words), runtime_env={"working_dir": str(archive)})
            while not marker.exists():
                time.sleep(0.02)
            time.sleep(4)
            if turn > 1:
                found[name].append(float(marker.read_text()) - began)
    finally:
        dispatcher.terminate()
        dispatcher.wait()
    for name, seconds in found.items():
        show(f"until the command runs: {name}", seconds)
    show("the difference", [b - a for a, b in zip(*found.values(), strict=True)])


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        if "--ray" in sys.argv[1:]:
            latency(Path(scratch))
            return
        admission()
        dispatch(Path(scratch))
        listing(Path(scratch))
        clients(Path(scratch))


if __name__ == "__main__":
    main()
