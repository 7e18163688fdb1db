"""Gangs of several users and queues on a real Ray of several raylets, beside a Serve app; preempted; on lost nodes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.integration import heartbeats
from tests.integration.raylets import Raylets, raylets
from tests.servers.postgres import Postgres

pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]

SERVE_APP = """
import sys, time
import ray
from ray import serve

@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1, "label_selector": {"name": "b"}})
class App:
    async def __call__(self, request): return "hello"

ray.init(log_to_driver=False)
serve.start(proxy_location="Disabled")
serve.run(App.bind())
print("serving", flush=True)
sys.stdin.read()
serve.shutdown()
"""


class Queue:
    """A queue of the test's own on a cluster of raylets."""

    def __init__(self, cluster: Raylets, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.code = folder / "code"
        self.code.mkdir()
        (self.code / "heartbeats.py").write_text(Path(heartbeats.__file__).read_text())
        self.environment = {
            **cluster.environment,
            "DUALVIEW_QUEUE": f"sqlite:///{folder}/queue/queue.db",
            "DUALVIEW_STORAGE": str(folder),
        }
        self.started: list[subprocess.Popen[str]] = []

    def command(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster", *arguments], cwd=ROOT, env={**self.environment, **variables},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *arguments: str, **variables: str) -> str:
        process = self.command(*arguments, **variables)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return output

    def submit(self, name: str, *arguments: str, script: str = "sleep 1", user: str = "ann") -> None:
        words = ["--working-dir", str(self.code), "--name", name, *arguments, "--", "bash", "-c", script]
        self.run("submit", *words, LOGNAME=user)

    def dispatch(self, *arguments: str) -> "subprocess.Popen[str]":
        return self.command("dispatch", "--poll", "0.2", *arguments)

    def jobs(self) -> dict[str, dict[str, Any]]:
        return {job["name"]: job for job in json.loads(self.run("list", "--json"))}

    def wait(self, what: Callable[[dict[str, dict[str, Any]]], bool], limit_s: float = 60) -> dict[str, dict[str, Any]]:
        deadline = time.monotonic() + limit_s
        while not what(jobs := self.jobs()):
            assert time.monotonic() < deadline, [
                (job["name"], job["state"], job["reason"], len(job["attempts"])) for job in jobs.values()
            ]
            time.sleep(0.1)
        return jobs


@pytest.fixture(scope="module")
def machines() -> Iterator[Raylets]:
    with raylets({"a": {}, "b": {}, "c": {"gpu": "H100"}}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as running:
        yield running


@pytest.fixture
def queue(machines: Raylets, tmp_path: Path) -> Iterator[Queue]:
    made = Queue(machines, tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def test_gangs_run_side_by_side_where_they_were_placed_beside_a_serve_app(queue: Queue) -> None:
    serving = subprocess.Popen(
        [sys.executable, "-c", SERVE_APP], env=queue.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert serving.stdout is not None
        assert serving.stdout.readline() == "serving\n"
        queue.run("queues", "set", "vision", "--guaranteed", "0.3")
        until_told = f"until [ -e '{queue.folder}/told' ]; do sleep 0.1; done"
        left = f"setsid sleep 4242 & echo $! > '{queue.folder}/left'"
        queue.submit("two", "--resources", "2*CPU=1", script=f"{left}; {until_told}")
        queue.submit("labelled", "--driver", "CPU=1", "--label", "gpu=H100", script=until_told, user="bob")
        queue.submit("vision", "--queue", "vision", "--driver", "CPU=1", script=until_told, user="bob")
        queue.submit("large", "--resources", "3*CPU=2", "--priority", "-1")  # all that there is; Serve has one
        queue.submit("huge", "--driver", "CPU=9", "--anyway")
        dispatcher = queue.dispatch()
        jobs = queue.wait(lambda jobs: all(jobs[name]["state"] == "running" for name in ("two", "labelled", "vision")))
        assert jobs["large"]["reason_code"] == "others"
        assert jobs["large"]["reason"].startswith("needs 3 x (2 CPU); there is room for 2; the rest is held outside")
        assert jobs["huge"]["reason_code"] == "impossible"
        assert jobs["huge"]["reason"] == "asks for 1 x (9 CPU); the nodes have 3 with 2 CPU"
        queue.run("cancel", "--name", "huge", LOGNAME="ann")
        nodes = queue.cluster.nodes()
        (queue.folder / "told").touch()
        queue.wait(lambda jobs: all(jobs[name]["state"] == "succeeded" for name in ("two", "labelled", "vision")))
        for name in ("two", "labelled", "vision"):
            [attempt] = queue.jobs()[name]["attempts"]
            assert queue.cluster.node_of(attempt["submission_id"]) == attempt["placement"]["driver"]
            assert attempt["placement"]["driver"] == nodes["c"] or name != "labelled"
        assert not Path("/proc", (queue.folder / "left").read_text().strip()).exists()
        assert queue.jobs()["large"]["state"] == "queued"
    finally:
        serving.communicate("", timeout=60)
    jobs = queue.wait(lambda jobs: jobs["large"]["state"] == "succeeded")
    spans = {
        name: (job["attempts"][0]["began_at"], job["attempts"][0]["ended_at"])
        for name, job in jobs.items()
        if job["attempts"]
    }
    together = [spans[name] for name in ("two", "labelled", "vision")]
    assert max(began for began, _ in together) < min(ended for _, ended in together)
    assert spans["large"][0] >= max(ended for _, ended in together)
    usage = {row["group"]: row["jobs"] for row in json.loads(queue.run("usage", "--json"))}
    assert usage == {"ann": 2, "bob": 2}
    dispatcher.terminate()
    output, _ = dispatcher.communicate(timeout=30)
    assert "stopped; running jobs continue" in output


@pytest.mark.slow
def test_a_higher_priority_takes_the_place_of_programs_that_answer_and_of_those_that_do_not(queue: Queue) -> None:
    count = queue.folder / "count"
    script = f"exec {sys.executable} heartbeats.py {count} 60"
    queue.submit("counts", "--driver", "CPU=2", "--label", "name=a", script=script)
    queue.submit(
        "sleeps", "--driver", "CPU=2", "--label", "name=b", script="trap '' TERM; sleep 8 & wait; wait; echo slept"
    )
    queue.dispatch("--min-runtime", "1s", "--grace", "5s")
    queue.wait(lambda jobs: jobs["counts"]["reason"].startswith("counting, step "))
    queue.wait(lambda jobs: jobs["sleeps"]["state"] == "running")
    queue.submit("first", "--driver", "CPU=2", "--label", "name=a", "--priority", "1", script="sleep 1", user="bob")
    jobs = queue.wait(lambda jobs: jobs["first"]["state"] == "succeeded" and jobs["counts"]["state"] == "succeeded", 90)
    left, again = jobs["counts"]["attempts"]
    assert (left["status"], left["exit_code"], left["asked_by"]) == ("failed", 75, 3)
    assert left["step"] is not None
    assert again["exit_code"] == 0
    output = queue.run("logs", "1")
    assert int(count.read_text()) == 60
    [stopped_at] = [line.split()[-1] for line in output.splitlines() if line.startswith("leaves after")]
    assert f"begins after {stopped_at}" in output
    assert jobs["counts"]["preemptions"] == 1
    assert jobs["sleeps"]["preemptions"] == 0
    assert "gives its machines back" not in jobs["sleeps"]["reason"]


@pytest.mark.slow
def test_a_gang_whose_node_is_lost_goes_on_elsewhere(queue: Queue) -> None:
    """Node c ends under a job on it; the job was placed there, and is placed elsewhere afterwards."""
    marker = queue.folder / "been here"
    script = f"if [ -e '{marker}' ]; then exit 0; fi; touch '{marker}'; sleep 100"
    queue.submit("moves", "--driver", "CPU=2", "--label", "name=in(b,c)", "--label", "gpu=H100", script=script)
    queue.submit("stays", "--driver", "CPU=1", "--label", "name=a", script="sleep 12")
    queue.dispatch()
    queue.wait(lambda _: marker.exists())
    queue.cluster.end("c")
    jobs = queue.wait(lambda jobs: jobs["moves"]["state"] == "queued")
    assert jobs["moves"]["reason_code"] in ("impossible", "new", "back_off")
    assert jobs["moves"]["attempts"][0]["reason"].endswith("it will be tried again")
    queue.run("cancel", "1", LOGNAME="ann")
    jobs = queue.wait(lambda jobs: jobs["stays"]["state"] == "succeeded", 90)
    assert len(jobs["stays"]["attempts"]) == 1


@pytest.mark.slow
def test_a_job_that_is_cancelled_while_it_writes_its_checkpoint_ends_with_a_whole_one(queue: Queue) -> None:
    count, gate = queue.folder / "count", queue.folder / "gate"
    queue.submit("saves", "--driver", "CPU=1", script=f"exec {sys.executable} heartbeats.py {count} 600 {gate}")
    queue.dispatch()
    queue.wait(lambda jobs: jobs["saves"]["reason"].startswith("counting, step "))
    queue.run("requeue", "1", LOGNAME="ann")
    deadline = time.monotonic() + 60
    while "saves\n" not in queue.run("logs", "1"):
        assert time.monotonic() < deadline
    assert not count.exists()
    queue.run("cancel", "1", LOGNAME="ann")
    time.sleep(2)  # it gets SIGTERM
    assert queue.jobs()["saves"]["state"] == "running"
    gate.touch()
    job = queue.wait(lambda jobs: jobs["saves"]["state"] != "running")["saves"]
    assert job["state"] == "cancelled"
    assert len(job["attempts"]) == 1
    assert f"leaves after {count.read_text()}\n" in queue.run("logs", "1")


@pytest.mark.slow
def test_gangs_of_a_head_that_is_restarted_begin_again_and_end(tmp_path: Path) -> None:
    """Ray has forgotten all that it ran; the queue has not, nor what had ended."""
    with raylets({"head": {}}, cpus=4) as cluster:
        queue = Queue(cluster, tmp_path)
        ports = (f"--port={cluster.environment['RAY_ADDRESS'].rpartition(':')[2]}",
                 f"--dashboard-port={cluster.address.rpartition(':')[2]}")  # fmt: skip
        try:
            queue.submit("ended")
            queue.dispatch()
            queue.wait(lambda jobs: jobs["ended"]["state"] == "succeeded")
            for name in ("one", "two", "three"):
                script = f"exec {sys.executable} heartbeats.py {tmp_path}/{name} 150"
                queue.submit(name, "--resources", "1*CPU=1", script=script)
            queue.wait(lambda jobs: all((job["attempts"] or [{}])[0].get("step") for job in [*jobs.values()][1:]))
            cluster.end("head")
            queue.submit("later", "--driver", "CPU=4")
            queue.wait(lambda jobs: jobs["later"]["reason_code"] == "unavailable")
            cluster.start("head", 4, {}, "--head", *ports)
            cluster.wait(1)
            jobs = queue.wait(lambda jobs: all(job["state"] == "succeeded" for job in jobs.values()), 180)
            assert [len(jobs[name]["attempts"]) for name in ("ended", "one", "two", "three", "later")] == [
                1,
                2,
                2,
                2,
                1,
            ]
            assert {jobs[name]["attempts"][0]["status"] for name in ("one", "two", "three")} <= {"lost", "failed"}
            assert [(tmp_path / name).read_text() for name in ("one", "two", "three")] == ["150"] * 3
        finally:
            for process in queue.started:
                process.kill()
                process.communicate()


@pytest.mark.slow
def test_of_two_dispatchers_one_leads_and_the_other_takes_over(queue: Queue, server: Postgres) -> None:
    """Three gangs go on while their dispatcher is paused and the next one is killed."""
    queue.environment |= {"DUALVIEW_QUEUE": server.database(), "DUALVIEW_QUEUE_FILES": str(queue.folder / "files")}
    for name in ("one", "two", "three"):
        script = f"exec {sys.executable} heartbeats.py {queue.folder}/{name} 200"
        queue.submit(name, "--resources", "1*CPU=1", script=script)
    first = queue.dispatch()
    assert "dispatching postgresql://postgres@/" in line(first)
    second = queue.dispatch()
    assert line(second).endswith("dispatches; this one takes over if that ends")
    queue.wait(lambda jobs: all(job["state"] == "running" for job in jobs.values()))

    first.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert "dispatching postgresql://postgres@/" in line(second)
    assert time.monotonic() - began < 10
    before = {name: job["attempts"][0]["step"] or 0 for name, job in queue.jobs().items()}
    queue.wait(lambda jobs: all((jobs[name]["attempts"][0]["step"] or 0) > before[name] + 5 for name in before))
    queue.submit("four", "--driver", "CPU=1")
    queue.wait(lambda jobs: jobs["four"]["state"] == "succeeded")

    first.send_signal(signal.SIGCONT)
    told = [line(first)]
    while not told[-1].endswith("dispatches; this one takes over if that ends"):
        told.append(line(first))
    assert any("another dispatcher" in text for text in told), told
    second.kill()
    assert "dispatching postgresql://postgres@/" in line(first)
    jobs = queue.wait(lambda jobs: all(job["state"] == "succeeded" for job in jobs.values()), 90)
    assert [len(job["attempts"]) for job in jobs.values()] == [1, 1, 1, 1]
    assert [(queue.folder / name).read_text() for name in ("one", "two", "three")] == ["200"] * 3
    assert queue.run("logs", "1").endswith("begins after 0\n")


def line(process: "subprocess.Popen[str]") -> str:
    """The next line that a command prints."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip()
