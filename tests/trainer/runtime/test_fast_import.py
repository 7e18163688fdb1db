"""The quick imports leave the process as they found it, and hide only what is not there yet."""

import gc
import importlib
import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from trainer.runtime.fast_import import import_uncompiled, quick_imports


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


def test_what_nobody_calls_is_not_compiled_and_the_compiler_is_there_afterwards(tmp_path, monkeypatch):
    (tmp_path / "compiles.py").write_text("""
import torch

@torch.compile
def plain(x):
    return x + 1

@torch.compile(dynamic=True)
def with_settings(x):
    return x + 2
""")
    monkeypatch.syspath_prepend(tmp_path)
    before = torch.compile
    import_uncompiled("compiles")
    compiles = sys.modules.pop("compiles")
    assert torch.compile is before
    assert (compiles.plain(1), compiles.with_settings(1)) == (2, 3)
    assert not hasattr(compiles.plain, "_torchdynamo_orig_callable")


def test_a_worker_imports_neither_mlflow_nor_scipy():
    code = (
        "import sys; from trainer.worker.entry import MODULES, import_stack; import_stack(MODULES, 'unet', 'cpu'); "
        "print([name for name in ('mlflow', 'scipy', 'deepspeed', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['deepspeed', 'diffusers']"
