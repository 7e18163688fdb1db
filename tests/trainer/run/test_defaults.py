"""Settings that are added, and defaults that change, leave every existing run where it is."""

from typing import Annotated

import pytest

from diffusion.config import Config, Later
from trainer.config import history
from trainer.config.history import ChangedDefault, under_earlier_defaults
from trainer.config.load import resolve, validate
from trainer.config.run_config import RunConfig
from trainer.errors import InputError
from trainer.files import read_json
from trainer.run.identity import register_name, resolve_run


class Inner(Config):
    width: int = 8


class Before(Config):
    rate: float = 0.5
    inner: Inner = Inner()


class InnerAfter(Inner):
    depth: Annotated[int, Later("0.2")] = 1


class After(Config):
    rate: float = 0.5
    inner: InnerAfter = InnerAfter()
    extra: Annotated[InnerAfter | None, Later("0.2")] = None
    group: Annotated[Inner, Later("0.3")] = Inner()


def test_a_field_added_later_is_in_no_digest_while_it_has_its_default():
    assert After().identity() == Before().identity()
    assert After(rate=0.1).identity() == Before(rate=0.1).identity()


@pytest.mark.parametrize("change", [{"inner": InnerAfter(depth=2)}, {"extra": InnerAfter()}, {"group": Inner(width=9)}])
def test_another_value_than_the_default_is_in_the_digest(change):
    assert After(**change).identity() != Before().identity()


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALVIEW_STORAGE", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def command(**values) -> RunConfig:
    return resolve(validate(values))


def started_when(monkeypatch, changes, **values):
    """A run of this command, started when the defaults changed since had their earlier values."""
    monkeypatch.setattr(history, "CHANGED_DEFAULTS", changes)
    earlier = resolve(next(under_earlier_defaults(validate(values))).model_copy(update={"run": validate(values).run}))
    resolved = resolve_run(earlier)
    monkeypatch.setattr(history, "CHANGED_DEFAULTS", ())
    register_name(resolved.config, resolved.paths, "d" * 64)
    return resolved


DRAWS = ChangedDefault("evaluation.vlb_draws", was=128, since="0.2.0")
RATE = ChangedDefault("optim.lr", was=3e-4, since="0.3.0")
RATE_AGAIN = ChangedDefault("optim.lr", was=2e-3, since="0.4.0")
COSINE = ChangedDefault("process.schedule.s", was=0.01, since="0.2.0", kind="cosine")


@pytest.mark.parametrize("changes", [(DRAWS,), (DRAWS, RATE), (RATE, RATE_AGAIN), (DRAWS, RATE, RATE_AGAIN), (COSINE,)])
def test_a_run_named_by_its_digest_is_found_after_defaults_changed(storage, monkeypatch, changes):
    old = started_when(monkeypatch, changes[:1] if len(changes) == 1 else changes)
    monkeypatch.setattr(history, "CHANGED_DEFAULTS", changes)
    resolved = resolve_run(command())
    assert resolved.paths == old.paths
    assert resolved.state == "resumable"
    assert resolved.config.method_sha256 == old.config.method_sha256 != command().method_sha256


def test_a_run_between_two_changes_is_found_too(storage, monkeypatch):
    old = started_when(monkeypatch, (RATE,))
    monkeypatch.setattr(history, "CHANGED_DEFAULTS", (DRAWS, RATE))
    assert resolve_run(command()).paths == old.paths


def test_a_changed_default_is_said_once_and_the_run_keeps_its_own(storage, monkeypatch):
    started_when(monkeypatch, (DRAWS,))
    monkeypatch.setattr(history, "CHANGED_DEFAULTS", (DRAWS,))
    resolved = resolve_run(command())
    assert resolved.notes == ("evaluation.vlb_draws is 32 by default since 0.2.0; this run goes on with its 128",)
    assert resolved.config.evaluation.vlb_draws == 128
    register_name(resolved.config, resolved.paths, "d" * 64)
    assert read_json(resolved.paths.identity)["told"] == ["evaluation.vlb_draws"]
    again = resolve_run(command())
    assert (again.notes, again.config) == ((), resolved.config)


def test_a_value_that_is_asked_for_is_no_default(storage, monkeypatch):
    old = started_when(monkeypatch, (DRAWS,))
    monkeypatch.setattr(history, "CHANGED_DEFAULTS", (DRAWS,))
    assert resolve_run(command(evaluation={"vlb_draws": 32})).state == "new"
    named = {"name": old.config.run.name}
    with pytest.raises(InputError, match=r"evaluation\.vlb_draws is 128 there and 32 here"):
        resolve_run(command(run=named, evaluation={"vlb_draws": 32}))
    assert resolve_run(command(run=named, evaluation={"vlb_draws": 128})).state == "resumable"


def test_a_default_of_one_kind_says_nothing_of_another(storage, monkeypatch):
    monkeypatch.setattr(history, "CHANGED_DEFAULTS", (COSINE,))
    linear = command(process={"schedule": {"kind": "linear"}})
    assert next(under_earlier_defaults(linear)).method_sha256 == linear.method_sha256


def test_a_new_run_takes_the_defaults_of_today(storage, monkeypatch):
    monkeypatch.setattr(history, "CHANGED_DEFAULTS", (DRAWS, RATE))
    resolved = resolve_run(command())
    assert (resolved.state, resolved.config.evaluation.vlb_draws, resolved.notes) == ("new", 32, ())
