"""The queue on a real head: three jobs, one of them a sweep and one preempted, and a dispatcher that is killed."""

import itertools
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from infra.machine import cpus
from tests.conftest import ROOT, Cluster
from tests.integration.conftest import configured

pytestmark = pytest.mark.integration

RUN = ("--set", "training.steps=60", "--set", "run.register_as=null")


@dataclass(frozen=True)
class Queue:
    """A queue of the test's own on the session's cluster."""

    cluster: Cluster
    url: str

    def run(self, *arguments: str, expect: int = 0) -> str:
        return self.cluster.run("cluster", *arguments, expect=expect, DUALVIEW_QUEUE=self.url)

    def command(self, *arguments: str) -> "subprocess.Popen[str]":
        return self.cluster.command("cluster", *arguments, DUALVIEW_QUEUE=self.url)

    def jobs(self) -> dict[int, dict[str, Any]]:
        return {job["id"]: job for job in json.loads(self.run("list", "--all", "--json"))}

    def wait(
        self, what: Callable[[dict[int, dict[str, Any]]], bool], limit_s: float = 120
    ) -> dict[int, dict[str, Any]]:
        deadline = time.monotonic() + limit_s
        while not what(jobs := self.jobs()):
            assert time.monotonic() < deadline, jobs
            time.sleep(0.2)
        return jobs


@pytest.fixture
def queue(cluster: Cluster, tmp_path: Path) -> Queue:
    return Queue(cluster, f"sqlite:///{tmp_path}/queue/queue.db")


@pytest.fixture
def dispatch(queue: Queue) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        started.append(queue.command("dispatch", "--drain", "--poll", "0.2"))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_jobs_run_by_priority_past_a_preemption_and_a_killed_dispatcher(
    queue: Queue, dispatch: Callable[[], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    """What the test of whole runs below does, with commands of a second: one gives its machines back, then goes on."""
    marker, code = tmp_path / "been here", ["--working-dir", str(_code(tmp_path))]
    code += ["--driver", "CPU=2"]  # of three, of which a sampler may have one: they run one after another
    queue.run("submit", *code, "--name", "low", "--", "bash", "-c", "printf 'low \\377\\n'")
    go = tmp_path / "go on"
    words = f"printf 'before \\377\\n'; for i in {{1..300}}; do [ -e '{go}' ] && break; sleep 0.1; done; echo after"
    queue.run("submit", *code, "--name", "middle", "--priority", "5", "--", "bash", "-c", words)
    script = f"if [ -e '{marker}' ]; then echo goes on; else touch '{marker}'; sleep 6; exit 75; fi"
    queue.run("submit", *code, "--name", "high", "--priority", "10", "--", "bash", "-c", script)
    first = dispatch()
    queue.wait(lambda jobs: any(attempt["confirmed"] for attempt in jobs[3]["attempts"]))
    first.kill()
    first.communicate()
    waiting = {number: job["reason"] for number, job in queue.jobs().items()}
    assert waiting[2].startswith("needs 2 CPU on one node; the largest free block is ")
    assert waiting[1] == f"{waiting[2]}; 1 job ahead"

    second, follower = dispatch(), queue.command("logs", "-f", "2")
    assert follower.stdout is not None
    assert any(line == "before \ufffd\n" for line in follower.stdout)  # while it runs
    assert queue.jobs()[2]["state"] == "running"
    go.touch()
    output, _ = second.communicate(timeout=120)
    assert follower.communicate(timeout=30)[0] == "after\n"
    jobs = queue.jobs()
    assert {job["state"] for job in jobs.values()} == {"succeeded"}, output
    assert [(a["status"], a["exit_code"]) for a in jobs[3]["attempts"]] == [("failed", 75), ("succeeded", 0)]
    attempts = [attempt for job in jobs.values() for attempt in job["attempts"]]
    times = sorted((attempt["began_at"], attempt["ended_at"], attempt["submission_id"]) for attempt in attempts)
    assert [name.split("-", 2)[2] for *_, name in times] == ["3-1", "3-2", "2-1", "1-1"]
    assert all(ended <= began for (_, ended, _), (began, *_) in itertools.pairwise(times))
    assert "goes on" in queue.run("logs", "3")
    [log] = (tmp_path / "queue" / "logs").glob("*-1-1.log")
    assert log.read_bytes().endswith(b"\nlow \xff\n")  # which is not UTF-8
    assert queue.run("logs", "1").endswith("\nlow \ufffd\n")


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_three_jobs_of_different_priority_and_a_killed_dispatcher(
    queue: Queue, dispatch: Callable[[], "subprocess.Popen[str]"], tiny: Path, tmp_path: Path
) -> None:
    cluster = queue.cluster
    sweep = tmp_path / "sweep.yaml"
    grid = {"process.schedule.kind": {"kind": "grid", "values": ["linear", "cosine"]}}
    sets = {"training.steps": 30, "run.register_as": None}
    sweep.write_text(yaml.safe_dump({"name": "queued-sweep", "base": str(tiny), "set": sets, "space": grid}))
    preempted = ["--config", str(tiny), "--set", "run.name=preempted", *RUN]
    _, preempted_paths = configured(cluster, tiny, "run.name=preempted", *RUN[1::2])
    plain = ["--config", str(tiny), "--set", "run.name=queued", *RUN]

    queue.run("submit", "--", "python", "-m", "trainer", *plain)
    queue.run("submit", "--priority", "5", "--", "python", "-m", "tuning", "run", "--config", str(sweep))
    script = ["python", "-m", "tests.integration.preempted", str(preempted_paths.root), *preempted]
    gang = ["--resources", "2*CPU=1", "--name", "preempted"]
    submit = ["python", "-m", "cluster", "--queue", queue.url, "submit", "--priority", "10", *gang, "--", *script]
    cluster.run("ray.scripts.scripts", "job", "submit", "--working-dir", ".", "--", *submit, cwd=ROOT)
    assert {job["name"]: job["reason"] for job in queue.jobs().values()} == dict.fromkeys(
        ("queued", "queued-sweep", "preempted"), "no dispatcher has looked at it yet"
    )

    first = dispatch()
    queue.wait(lambda jobs: any(attempt["confirmed"] for attempt in jobs[3]["attempts"]))
    first.kill()
    first.communicate()
    assert queue.jobs()[1]["reason"].startswith("needs 2 x (1 CPU); there is room for 1")

    follower = queue.command("logs", "-f", "3")
    output, _ = dispatch().communicate(timeout=360)
    jobs = queue.jobs()
    assert {job["state"] for job in jobs.values()} == {"succeeded"}, output
    assert [(a["status"], a["exit_code"]) for a in jobs[3]["attempts"]] == [("failed", 75), ("succeeded", 0)]
    assert [len(jobs[number]["attempts"]) for number in (1, 2)] == [1, 1]
    attempts = [attempt for job in jobs.values() for attempt in job["attempts"]]
    times = sorted((attempt["began_at"], attempt["ended_at"], attempt["submission_id"]) for attempt in attempts)
    assert times[0][2].endswith("-3-1")

    followed, _ = follower.communicate(timeout=60)
    assert followed.count("training 60 steps") == 1
    assert re.search(r"resuming after step \d+ of 60", followed), followed
    assert "resuming after step" in queue.run("logs", "3")

    client = MlflowClient(cluster.stack.tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {"queued", "preempted", "queued-sweep"} <= set(runs)
    children = [
        run for run in runs.values() if run.data.tags.get("mlflow.parentRunId") == runs["queued-sweep"].info.run_id
    ]
    assert len(children) == 2
    for run in (runs["queued"], runs["preempted"], *children):
        assert run.info.status == "FINISHED"
        assert {"vlb_bpd", "frechet_classifier"} <= set(run.data.metrics)
        assert len(run.data.tags["mlflow.source.git.commit"].removesuffix("-dirty")) == 40 or run is runs["preempted"]


def test_a_running_job_is_cancelled_and_the_one_behind_it_runs(
    queue: Queue, dispatch: Callable[[], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    code = ["--working-dir", str(_code(tmp_path)), "--driver", "CPU=2"]
    queue.run("submit", *code, "--", "bash", "-c", "echo here; sleep 600")
    queue.run("submit", *code, "--", "bash", "-c", "echo job $DUALVIEW_JOB; exit 3")
    queue.run("submit", "--working-dir", str(_code(tmp_path)), "--resources", "CPU=4096", "--anyway", "--", "true")
    process = dispatch()
    queue.wait(lambda jobs: any(attempt["confirmed"] for attempt in jobs[1]["attempts"]))
    assert queue.jobs()[3]["reason"] == f"asks for 1 x (4096 CPU); the nodes have {cpus()} CPU"
    assert "will be stopped" in queue.run("cancel", "1")
    queue.run("cancel", "3")
    output, _ = process.communicate(timeout=60)
    jobs = queue.jobs()
    assert {number: job["state"] for number, job in jobs.items()} == {1: "cancelled", 2: "failed", 3: "cancelled"}, (
        output
    )
    assert jobs[2]["reason"] == "exit 3"
    assert "job 2\n" in queue.run("logs", "2")


def _code(folder: Path) -> Path:
    code = folder / "code"
    code.mkdir(exist_ok=True)
    (code / "README").write_text("a job needs no more\n")
    return code
