"""The local stack and the main job: unit tests, the job against stand-in commands, one real start and stop."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra import lifecycle, local, machine, main_job, processes, stack
from infra.local import main
from infra.processes import STACK_ID_VARIABLE, ProcessId
from infra.stack import Stack, StackError
from tests.infra.checkout import PACKAGE, PNG, ROOT, SUMMARY, Checkout, make_checkout


def processes_by_psutil(stack_id: str) -> list[str]:
    """Live processes of a stack, found without the code under test."""
    command_lines: list[str] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(STACK_ID_VARIABLE) == stack_id and process.status() != psutil.STATUS_ZOMBIE:
                command_lines.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return command_lines


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = make_checkout(tmp_path / "checkout")
    yield made
    lifecycle.stop(made.var)


@pytest.fixture
def bystander() -> Iterator[ProcessId]:
    """A process that belongs to no stack."""
    process = subprocess.Popen(["sleep", "600"])
    psutil_process = psutil.Process(process.pid)
    ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    yield ProcessId(process.pid, int(ticks))
    assert psutil_process.is_running()
    process.kill()
    process.wait()


def record(var: Path, **changes: object) -> Stack:
    """A stack recorded under `var` that nobody started."""
    values = {
        "id": "0" * 32,
        "ports": dict.fromkeys(stack.PREFERRED_PORTS, 1),
        "scratch": "/tmp/dualview-test",
        "kept": True,
    }
    made = Stack(**(values | changes))  # pyright: ignore[reportArgumentType]
    var.mkdir(parents=True, exist_ok=True)
    stack.save(made, var)
    return made


class TestMachine:
    def test_ports_are_the_preferred_ones_unless_taken_and_all_differ(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            busy = taken.getsockname()[1]
            free = machine.free_ports([0])[0]
            ports = machine.free_ports([busy, free, free])
        assert ports[1] == free
        assert len({busy, *ports}) == 4

    @pytest.mark.parametrize(("limit", "expected"), [("max 100000", 9), ("50000 100000", 3), ("250000 100000", 4)])
    def test_cpus_respect_the_container_and_are_at_least_two_and_one_for_the_sampler(
        self, limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cpu.max").write_text(limit + "\n")
        monkeypatch.setattr(machine, "CGROUP_CPU_LIMIT", tmp_path / "cpu.max")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
        assert machine.cpus() == expected

    @pytest.mark.parametrize(("visible", "expected"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("0,1,2", 2)])
    def test_gpus_are_those_listed_and_visible(
        self, visible: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listing = tmp_path / "nvidia-smi"
        listing.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: x)'\necho '  MIG 1g'\necho 'GPU 1: two (UUID: y)'\n")
        listing.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.gpus() == expected

    def test_no_gpus_without_nvidia_smi(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert machine.gpus() == 0


class TestProcesses:
    def test_stop_reaches_a_deaf_grandchild_in_another_session(self, tmp_path: Path, bystander: ProcessId) -> None:
        deaf = "trap '' TERM; setsid sh -c \"trap '' TERM; echo ready; while :; do sleep 1; done\" & wait"
        environment = {**os.environ, STACK_ID_VARIABLE: "deaf-test"}
        process = subprocess.Popen(["sh", "-c", deaf], env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(processes.stack_pids("deaf-test")) >= 2
        assert processes.stop_stack("deaf-test", grace_s=0.2) == []
        assert processes_by_psutil("deaf-test") == []
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        assert bystander.alive()

    def test_a_process_is_its_pid_and_its_start(self, bystander: ProcessId) -> None:
        assert bystander.alive()
        assert not ProcessId(bystander.pid, bystander.started - 1).alive()

    def test_spawn_writes_to_the_log_in_a_session_of_its_own(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        command = [sys.executable, "-c", "import os, sys; print(os.getsid(0), file=sys.stderr)"]
        process = processes.spawn(command, os.environ, log)
        os.waitpid(process.pid, 0)
        assert log.read_text().split() == [str(process.pid)]
        assert not process.alive()


class TestRecord:
    def test_round_trip(self, tmp_path: Path) -> None:
        saved = record(tmp_path, processes={"ray": ProcessId(12, 34), "mlflow": ProcessId(56, 78)})
        assert stack.load(tmp_path) == saved

    def test_nothing_recorded(self, tmp_path: Path) -> None:
        assert stack.load(tmp_path) is None
        assert not lifecycle.stop(tmp_path)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"processes": {"ray": 1}}'])
    def test_a_broken_record_says_which_file(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "stack.json").write_text(text)
        with pytest.raises(StackError, match=r"stack\.json is not the record of a stack"):
            stack.load(tmp_path)

    def test_recycled_pids_and_foreign_folders_are_left_alone(self, tmp_path: Path, bystander: ProcessId) -> None:
        recycled = ProcessId(bystander.pid, bystander.started - 1)
        precious = tmp_path / "precious"
        precious.mkdir()
        made = record(tmp_path / "var", scratch=str(precious), processes={"ray": recycled, "mlflow": recycled})
        assert not made.alive()
        assert lifecycle.stop(tmp_path / "var")
        assert bystander.alive()
        assert precious.is_dir()
        assert stack.load(tmp_path / "var") is None

    def test_one_dead_part_makes_a_dead_stack(self, tmp_path: Path, bystander: ProcessId) -> None:
        gone = ProcessId(bystander.pid, 0)
        assert record(tmp_path, processes={"ray": bystander, "mlflow": bystander}).alive()
        assert not record(tmp_path, processes={"ray": bystander, "mlflow": gone}).alive()
        assert not record(tmp_path).alive()

    def test_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's own")
        monkeypatch.setenv("PYTHONPATH", "/elsewhere")
        monkeypatch.setenv("NO_PROXY", "example.org")
        made = stack.environment(record(tmp_path), ROOT, tmp_path, gpus=0)
        assert "RAY_AUTH_TOKEN" not in made
        assert made["RAY_AUTH_MODE"] == "token"
        assert made["PYTHONPATH"] == f"{ROOT}:/elsewhere"
        assert made["NO_PROXY"] == "example.org,127.0.0.1,localhost"
        assert made["DS_ACCELERATOR"] == "cpu"
        assert [made[name] for name in stack.NO_TELEMETRY] == ["0", "true", "1"]

    def test_two_commands_never_work_on_one_stack(self, tmp_path: Path) -> None:
        refused = pytest.raises(StackError, match="another `make run`")
        with lifecycle.checkout_lock(tmp_path), refused, lifecycle.checkout_lock(tmp_path):
            pass
        with lifecycle.checkout_lock(tmp_path):
            pass


class TestJob:
    """The main job, run as a command, against stand-ins for the commands it drives."""

    def test_from_nothing_to_the_table_and_nothing_left(self, checkout: Checkout) -> None:
        output = checkout.run("--set", "optim.lr=1e-3", "--set", "seed=3")
        assert "training with ['--set', 'optim.lr=1e-3', '--set', 'seed=3'] on 127.0.0.1:" in output
        for value in (
            "7.25",
            "9.5",
            "166",
            "1140",
            "3.5 bits/dim",
            "1234",
            "models:/digits@champion (package abababababab)",
        ):
            assert value in output, output
        assert "out/digits.png out/report.html out/samples.npy out/summary.json" in output
        assert (checkout.out / "report.html").read_text() == "<!doctype html>"
        assert (checkout.out / "digits.png").read_bytes() == PNG
        assert (checkout.out / "samples.npy").read_bytes() == b"samples"
        assert "http://127.0.0.1:" in output
        assert not (checkout.var / "stack.json").exists()
        assert [line for line in _command_lines() if str(checkout.root) in line] == []

    def test_a_done_run_starts_nothing_until_its_files_are_missing(self, checkout: Checkout) -> None:
        checkout.run()
        logs = checkout.var / "log"
        before = (logs / "ray.log").stat().st_mtime_ns
        output = checkout.run()
        assert "this run is done (digits-1)" in output
        assert "--set seed=1" in output
        assert (logs / "ray.log").stat().st_mtime_ns == before
        (checkout.out / "digits.png").unlink()
        assert "training" in checkout.run()
        assert (checkout.out / "digits.png").is_file()

    def test_a_kept_stack_is_used_again_and_stays(self, checkout: Checkout) -> None:
        output = checkout.run("--keep")
        kept = checkout.record()
        assert kept["kept"] is True
        assert "make stop" in output
        assert len(processes_by_psutil(kept["id"])) >= 3
        (checkout.out / "summary.json").unlink()
        assert "are running" in checkout.run()
        assert checkout.record() == kept
        assert kept["id"] not in checkout.local("status")
        assert "everything stopped" in checkout.local("stop")
        assert processes_by_psutil(kept["id"]) == []
        assert "nothing was running" in checkout.local("stop")

    def test_a_done_run_to_be_kept_is_served_without_training(self, checkout: Checkout) -> None:
        checkout.run()
        output = checkout.run("--keep")
        assert "is done" in output
        assert "training" not in output
        assert "served at" in output
        assert checkout.record()["kept"] is True

    def test_bad_input_passes_through_before_anything_starts(self, checkout: Checkout) -> None:
        assert checkout.run("--set", "seed=bad", expect=2) == "error: seed = 'bad': allowed: an integer\n"
        assert not (checkout.var / "log").exists()

    def test_the_trainers_exit_code_passes_through_and_nothing_is_left(self, checkout: Checkout) -> None:
        checkout.run("--set", "preempt=true", expect=75)
        assert not (checkout.var / "stack.json").exists()

    @pytest.mark.parametrize("name", ["ray", "mlflow", "sampler"])
    def test_a_part_that_does_not_start_is_named_with_its_log(self, name: str, checkout: Checkout) -> None:
        output = checkout.run(expect=1, BROKEN=name)
        assert f"{name}.log ends:\n    {name} cannot start" in output
        assert not (checkout.var / "stack.json").exists()
        assert not (checkout.out / "summary.json").exists()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_the_trainer_and_the_stack(self, number: signal.Signals, checkout: Checkout) -> None:
        process = checkout.start("run", "--config", "digits.yaml", "--set", "wait=true")
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith("training"):
            assert line, "ended before it trained"
        stack_id = checkout.record()["id"]
        assert "another `make run` is running" in checkout.run(expect=1)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 128 + number
        assert "the same command resumes" in output
        assert processes_by_psutil(stack_id) == []

    def test_what_a_killed_run_left_is_cleared_by_the_next(self, checkout: Checkout) -> None:
        process = checkout.start("run", "--config", "digits.yaml", "--set", "wait=true")
        assert process.stdout is not None
        while not process.stdout.readline().startswith("training"):
            assert process.poll() is None
        process.kill()
        process.wait()
        process.stdout.close()
        left = checkout.record()["id"]
        assert processes_by_psutil(left) != []
        checkout.run()
        assert processes_by_psutil(left) == []

    def test_one_gpu_takes_one_worker(self, checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
        listing = checkout.root / "bin" / "nvidia-smi"
        listing.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: x)'\n")
        listing.chmod(0o755)
        monkeypatch.setenv("PATH", str(listing.parent), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        output = checkout.run()
        assert output.startswith("one GPU: one worker (parallel.workers=1)")
        assert "'--set', 'parallel.workers=1'" in output

    @pytest.mark.parametrize(
        ("package", "body", "message"),
        [("cd" * 32, PNG, "is package cdcd"), (PACKAGE, b'{"detail": "no"}', "not a PNG")],
    )
    def test_an_answer_that_is_not_this_models_picture_is_refused(
        self, package: str, body: bytes, message: str, tmp_path: Path
    ) -> None:
        checkout = make_checkout(tmp_path / "checkout", package, body)
        assert message in checkout.run(expect=1)
        assert not checkout.out.exists()
        assert not (checkout.var / "stack.json").exists()

    def test_a_sampler_that_does_not_answer_is_named(self) -> None:
        url = f"http://127.0.0.1:{machine.free_ports([0])[0]}"
        with pytest.raises(StackError, match=f"the sampler at {url} did not answer"):
            main_job.ask_for_images(url, "digits@champion", SUMMARY["package_sha256"])


def test_the_command_line_loads_no_heavy_package() -> None:
    code = "import sys, infra.local; print({'torch', 'ray', 'mlflow', 'numpy', 'rich', 'trainer'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "set()\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("run", "up", "stop", "status"))


DRIVER = """
import ray

ray.init(logging_level="error")

@ray.remote(num_cpus=0)
class Keeper:
    def start(self):
        import subprocess
        subprocess.Popen(["sleep", "600"], start_new_session=True)

keeper = Keeper.options(name="keeper", namespace="test", lifetime="detached").remote()
ray.get(keeper.start.remote())
print("ready")
"""


@pytest.mark.integration
def test_the_real_stack_asks_for_the_token_on_loopback_only_and_leaves_nothing(tmp_path: Path) -> None:
    var = tmp_path / "var"
    made = lifecycle.up(ROOT, var, kept=True)
    try:
        assert made.alive()
        assert stat.S_IMODE((var / "ray_token").stat().st_mode) == 0o600
        assert stat.S_IMODE((var / "stack.env").stat().st_mode) == 0o600
        environment = stack.environment(made, ROOT, var, gpus=0)
        assert _run(DRIVER, environment) == (0, "ready\n", "")
        assert _listening(made.id) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        with pytest.raises(OSError, match="401"):
            lifecycle.fetch(f"{made.dashboard}/api/jobs/")
        stranger = environment | {"RAY_AUTH_MODE": "disabled", "RAY_NUM_REDIS_GET_RETRIES": "1"}
        assert "InvalidAuthToken" in _run(DRIVER, stranger)[2]
        assert any("sleep 600" in line for line in processes_by_psutil(made.id))
    finally:
        lifecycle.stop(var)
    assert processes_by_psutil(made.id) == []
    assert [line for line in _command_lines() if made.scratch in line] == []
    assert not Path(made.scratch).exists()
    assert sorted(path.name for path in var.iterdir()) == ["log", "mlflow", "runs"]


def _run(code: str, environment: dict[str, str]) -> tuple[int, str, str]:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def _listening(stack_id: str) -> set[str]:
    pids = set(processes.stack_pids(stack_id))
    connections = psutil.net_connections("tcp")
    return {c.laddr[0] for c in connections if c.laddr and c.pid in pids and c.status == psutil.CONN_LISTEN}


def _command_lines() -> list[str]:
    return subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines()


def test_what_nobody_foresaw_is_one_line_and_a_file_with_the_rest(monkeypatch, tmp_path, capsys):
    def fail() -> None:
        raise KeyError("x")

    monkeypatch.setattr(local, "_status", fail)
    monkeypatch.setattr(local.signals, "exit_on_signals", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert local.main(["status"]) == 1
    [file] = tmp_path.glob("dualview-*.log")
    assert capsys.readouterr().err == f"failed: KeyError: 'x'  (all of it: {file})\n"
    assert "Traceback" in file.read_text()
