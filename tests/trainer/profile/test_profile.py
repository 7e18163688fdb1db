"""A profile of real steps by real ranks, what follows from its numbers, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from trainer.profile.__main__ import main
from trainer.profile.result import Profile, show
from trainer.worker import spans

FOUND = Profile(
    device="a GPU",
    workers=2,
    batch=200,
    step_ms=100.0,
    parts_ms={"forward": 30.0, "backward": 60.0, "everything else": 10.0},
    loader_ms={"draws": 1.5},
    device_ms={"forward": 25.0},
    flops_per_image=2e9,
    best={"matrix product": 8e12, "convolution": 4e12},
    peak_memory=3 * 2**29,
)


def test_what_follows_from_the_numbers():
    values = FOUND.to_json()
    assert values["images_per_second"] == 2000.0
    assert values["flops"] == 2e12  # of a rank
    assert values["share_of_best"] == {"matrix product": 0.25, "convolution": 0.5}
    assert values["mfu"] == 0.25  # of the better of the two


def test_the_table_says_it_in_words(capsys: pytest.CaptureFixture[str]):
    show(FOUND, Console(highlight=False, soft_wrap=True))
    words = " ".join(capsys.readouterr().out.split())
    assert "backward 60.00 60.0 % 0.00" in words
    assert "2,000 images/s without the profiler: 200 images in 100.0 ms" in words
    assert "2 GFLOP an image, 2.0 TFLOP/s on each of 2 ranks: 25 % of the best matrix product (8.0 TFLOP/s)" in words
    assert "peak memory 1.50 GiB" in words


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    settings = {
        "network": {"kind": "mlp", "width": 16, "depth": 1},
        "training": {"steps": 5, "global_batch_size": 8},
        "parallel": {"workers": 2, "zero_stage": 2},
        "run": {
            "experiment": "profiled",
            "storage": str(tmp_path / "storage"),
            "checkpoint_every": 5,
            "evaluate_every": 10,
        },
    }
    file.write_text(yaml.safe_dump(settings))
    return file


def test_two_ranks_are_profiled_and_the_run_is_not_touched(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main([str(config), "--steps", "3", "--out", str(out)]) == 0
    values = json.loads((out / "profile.json").read_text())
    assert set(spans.STEP) <= set(values["parts_ms"])
    assert set(spans.LOADER) == set(values["loader_ms"])
    assert all(ms >= 0 for ms in (*values["parts_ms"].values(), *values["loader_ms"].values()))
    assert (values["workers"], values["batch"], values["device_ms"]) == (2, 8, {})
    names = {event.get("name") for event in json.loads((out / "trace.json").read_text())["traceEvents"]}
    assert set(spans.STEP) <= names
    assert not (tmp_path / "storage" / "profiled").exists()
    assert "waiting for data" in capfd.readouterr().out


def test_a_rank_that_fails_is_one_line(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    diverges = ["--set", "optim.lr=1e30", "--set", "optim.warmup_steps=0", "--set", "parallel.workers=1"]
    assert main([str(config), "--out", str(tmp_path / "out"), *diverges]) == 1
    error = capsys.readouterr().err
    assert "failed: rank 0: " in error
    assert "NonFiniteError: step " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "error: --steps = 0; allowed: at least 1"),
        (["--set", "parallel.device=cuda"], "error: parallel.device = cuda: this machine has 0 GPUs for 2 workers"),
        (["--out", "/proc/profiled"], "error: --out /proc/profiled: "),
        (["--set", "data.source=/nowhere"], "error: data.source"),
    ],
)
def test_bad_input_is_one_line(
    config: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    import torch

    if "parallel.device=cuda" in words and torch.cuda.device_count() >= 2:
        pytest.skip("there are as many GPUs as workers")
    place = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    assert main([str(config), *place, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
