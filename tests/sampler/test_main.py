"""The command line: its help, the input it rejects, and the files it writes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sampler.__main__ import SOLVERS, main
from tests.sampler.conftest import write_package

MLFLOW_WARNING = "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"


@pytest.mark.parametrize("command", [[], ["serve"], ["generate"]])
def test_help_loads_no_heavy_package(command: list[str]) -> None:
    code = (
        "import sys\nfrom sampler.__main__ import main\n"
        f"try: main({[*command, '--help']!r})\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'mlflow', 'fastapi', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "usage:" in shown
    assert not command or "examples:" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "-n", "0", "--out", "a.png"], "error: -n/--count: 0: allowed: a whole number from 1"),
        (["MODEL", "--seed", "-1", "--out", "a.png"], "error: --seed: -1: allowed: a whole number from 0"),
        (["MODEL", "--out", "a.jpg"], "error: --out: a.jpg: allowed: a name that ends in .png or .npy"),
        (["MODEL", "--out", "no/such/a.png"], "error: --out: no/such/a.png: allowed: a file in a folder that exists"),
        (["MODEL", "--solver", "magic", "--out", "a.png"], "error: --solver: invalid choice: 'magic'"),
        (["nowhere", "--out", "a.png"], "error: model: nowhere: no such folder; allowed: NAME@alias"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["generate", *arguments])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith(message)
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_bad_input(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["generate", str(package), "--device", "cuda", "--out", str(tmp_path / "a.npy")]) == 2
    assert capsys.readouterr().err == "error: --device cuda: torch sees no GPU here; allowed: cpu, or auto\n"


def test_more_steps_than_the_chain_has_is_bad_input(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "a.npy"
    assert main(["generate", str(package), "--steps", "101", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("error: solver.num_steps = 101; allowed: 1 to ")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "3"], "error: label = 3: allowed: 0 to 2\n"),
        (["--label", "cat"], "error: label = 'cat': allowed: 0 to 2\n"),
        (["--guidance", "2"], "error: guidance.kind = classifier_free: needs a label to guide towards\n"),
        (["--guide", "five"], "error: guidance.guide: has 5 classes, the model 3; allowed: a guide with the same"),
        (["--guide", "large"], "error: --guide: large makes images of (1, 4, 4); allowed: a model of (1, 8, 8), as "),
    ],
)
def test_a_label_or_guide_that_the_model_cannot_take_is_bad_input(
    classed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_package(Path("five"), classes=5)
    write_package(Path("large"), shape=(1, 4, 4))
    assert main(["generate", str(classed), *arguments, "--out", "a.npy"]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_model_is_guided_by_its_labels_or_by_another_model(classed: Path, tmp_path: Path, package: Path) -> None:
    def images(*arguments: str) -> np.ndarray:
        out = tmp_path / "a.npy"
        assert main(["generate", str(classed), "-n", "2", *arguments, "--out", str(out)]) == 0
        return np.load(out)

    plain = images("--label", "1")
    assert np.array_equal(images("--label", "1", "--guidance", "1"), plain)
    assert np.array_equal(images("--label", "1", "--guide", str(package), "--guidance", "1"), plain)
    for guided in (("--guidance", "4"), ("--guide", str(package))):
        assert not np.array_equal(images("--label", "1", *guided), plain)


def test_a_label_is_the_name_of_a_class_or_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_package(Path("named"), classes=3, class_names=("ant", "10", "bee"))

    def images(label: str) -> np.ndarray:
        assert main(["generate", "named", "-n", "2", "--label", label, "--out", "a.npy"]) == 0
        return np.load("a.npy")

    assert np.array_equal(images("bee"), images("2"))
    assert np.array_equal(images("10"), images("1"))
    assert not np.array_equal(images("ant"), images("bee"))
    assert main(["generate", "named", "--label", "wasp", "--out", "a.npy"]) == 2
    assert capsys.readouterr().err == "error: label = 'wasp': allowed: 0 to 2, or ant, 10, bee\n"


@pytest.mark.parametrize(
    ("trained", "code", "error"),
    [
        (True, 0, ""),
        (None, 0, "warning: guided does not say whether it was also trained without labels"),
        (False, 2, "error: guidance.kind = classifier_free: needs labels, and a network that has them and was trained"),
    ],
)
def test_guidance_is_for_networks_that_were_also_trained_without_labels(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trained: bool | None,
    code: int,
    error: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_package(Path("guided"), classes=3, null_label_trained=trained)
    words = ["generate", "guided", "-n", "2", "--label", "1", "--guidance", "2", "--out", "a.npy"]
    assert main(words) == code
    said = capsys.readouterr().err
    assert said.startswith(error)
    assert bool(said) == bool(error)


def test_rk45_takes_no_number_of_steps(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "a.npy"
    assert main(["generate", str(package), "--solver", "rk45", "--steps", "4", "--out", str(out)]) == 2
    assert capsys.readouterr().err == "error: --steps: rk45 chooses its steps by itself; allowed: without --steps\n"
    assert main(["generate", str(package), "-n", "3", "--solver", "rk45", "--out", str(out)]) == 0
    assert np.load(out).shape == (3, 8, 8, 1)


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver != "rk45"])
def test_generate_writes_the_array(package: Path, tmp_path: Path, solver: str) -> None:
    out = tmp_path / "a.npy"
    assert main(["generate", str(package), "-n", "3", "--solver", solver, "--steps", "4", "--out", str(out)]) == 0
    assert np.load(out).shape == (3, 8, 8, 1)


@pytest.mark.filterwarnings(MLFLOW_WARNING)
def test_generate_writes_a_grid_of_a_registered_model(registry: str, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    assert main(["generate", "tiny@champion", "--tracking-uri", registry, "-n", "4", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.size == (2 * 64 + 3 * 6, 2 * 64 + 3 * 6)


def test_a_registry_that_is_down_is_no_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    arguments = ["generate", "tiny@champion", "--tracking-uri", "http://127.0.0.1:9", "--out", str(tmp_path / "a.png")]
    assert main(arguments) == 1


def test_a_model_served_twice_is_bad_input(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(package), "--model", str(package)]) == 2
    assert "allowed: each name once" in capsys.readouterr().err
