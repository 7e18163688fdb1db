"""The quick imports leave the process as they found it, and hide only what is not there yet."""

import gc
import importlib
import importlib.util
import json
import subprocess
import sys

import pytest

from trainer.runtime.fast_import import quick_imports


@pytest.fixture
def installed(tmp_path, monkeypatch) -> str:
    """The name of a module that nobody has imported yet."""
    (tmp_path / "nobody_imports_this.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return "nobody_imports_this"


def test_a_hidden_package_looks_like_one_that_is_not_installed(installed):
    with quick_imports(installed):
        assert importlib.util.find_spec(installed) is None
        with pytest.raises(ImportError):
            importlib.import_module(installed)
    assert installed not in sys.modules
    assert importlib.util.find_spec(installed) is not None


def test_what_is_imported_already_stays():
    with quick_imports("json"):
        assert importlib.import_module("json") is json


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_as_before_even_after_an_error(collecting):
    before = gc.isenabled()
    try:
        gc.enable() if collecting else gc.disable()
        with pytest.raises(ZeroDivisionError), quick_imports("nobody_imports_this"):
            _ = 1 / gc.isenabled()
        assert gc.isenabled() is collecting
    finally:
        gc.enable() if before else gc.disable()


def test_a_worker_imports_neither_mlflow_nor_scipy():
    code = (
        "import sys; from trainer.worker.entry import MODULES, import_stack; import_stack(MODULES, 'unet', 'cpu'); "
        "print([name for name in ('mlflow', 'scipy', 'deepspeed', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['deepspeed', 'diffusers']"
