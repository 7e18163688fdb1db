"""Aliases, their history and the tags that say why, in a real MLflow registry on sqlite."""

import json

import pytest

from trainer.errors import InputError
from trainer.registry import __main__ as registry_cli, promotion
from trainer.registry.gate import Decision
from trainer.registry.models import open_versions
from trainer.registry.promotion import (
    DECISION,
    REASON,
    decide_alias,
    history,
    roll_back,
    set_alias,
    version_of_alias,
)
from trainer.tracking import client as tracking

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tracking.DEFAULTS.items():
            patch.setenv(name, value)
        from mlflow import MlflowClient

        uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
        yield uri, MlflowClient(uri, uri)


@pytest.fixture
def model(store, request, tmp_path):
    """A registered model of three versions: (client, name, uri)."""
    uri, client = store
    name = request.node.name.replace("[", "-").replace("]", "")
    client.create_registered_model(name)
    experiment = client.create_experiment(name, artifact_location=f"file://{tmp_path}")
    for vlb in (4.5, 4.4, 4.3):
        run = client.create_run(experiment).info.run_id
        client.log_metric(run, "vlb_bpd", vlb)
        client.create_model_version(name, f"file://{tmp_path}", run_id=run)
    return client, name, uri


def says(promoted: bool, seen: list[str | None] | None = None):
    def decide(champion: str | None) -> Decision:
        if seen is not None:
            seen.append(champion)
        return Decision(promoted, f"beside {champion}")

    return decide


def test_a_version_is_challenger_and_then_what_the_gate_says(model):
    client, name, _ = model
    assert decide_alias(client, name, "1", "champion", says(True)).promoted
    assert version_of_alias(client, name, "champion") == "1"
    assert version_of_alias(client, name, "challenger") is None
    assert not decide_alias(client, name, "2", "champion", says(False)).promoted
    assert (version_of_alias(client, name, "champion"), version_of_alias(client, name, "challenger")) == ("1", "2")
    assert decide_alias(client, name, "3", "champion", says(True)).reason == "beside 1"
    assert (version_of_alias(client, name, "champion"), version_of_alias(client, name, "challenger")) == ("3", None)
    tags = client.get_model_version(name, "2").tags
    assert (tags[DECISION], tags[REASON]) == ("challenger", "beside 1")


def test_what_was_decided_stays_decided(model):
    client, name, _ = model
    decide_alias(client, name, "1", "champion", says(True))
    decide_alias(client, name, "2", "champion", says(False))
    seen: list[str | None] = []
    assert decide_alias(client, name, "1", "champion", says(False, seen)) == Decision(True, "beside None")
    assert not decide_alias(client, name, "2", "champion", says(True, seen)).promoted
    assert seen == []
    assert version_of_alias(client, name, "champion") == "1"


def test_a_champion_that_changes_meanwhile_is_what_has_to_be_beaten(model):
    client, name, _ = model
    seen: list[str | None] = []

    def decide(champion: str | None) -> Decision:
        seen.append(champion)
        if champion is None:
            set_alias(client, name, "1", "champion")
        return Decision(champion is None, f"beside {champion}")

    assert not decide_alias(client, name, "2", "champion", decide).promoted
    assert seen == [None, "1"]
    assert version_of_alias(client, name, "champion") == "1"


def test_the_alias_goes_back_the_way_it_came(model):
    client, name, _ = model
    for number in ("1", "2", "3"):
        set_alias(client, name, number, "champion")
    assert history(client, name, "champion") == ["1", "2", "3"]
    assert roll_back(client, name, "champion", "sevens") == ("2", "3")
    assert version_of_alias(client, name, "champion") == "2"
    assert client.get_model_version(name, "3").tags[REASON] == "version 2 is champion again: sevens"
    assert roll_back(client, name, "champion", "more") == ("1", "2")
    with pytest.raises(InputError, match="version 1 has been champion, and none before"):
        roll_back(client, name, "champion", "again")
    assert version_of_alias(client, name, "champion") == "1"


def test_an_alias_that_was_given_by_hand_is_in_the_history_too(model):
    client, name, _ = model
    with pytest.raises(InputError, match="no version has been champion"):
        roll_back(client, name, "champion", "x")
    client.set_registered_model_alias(name, "champion", "2")
    set_alias(client, name, "3", "champion")
    assert history(client, name, "champion") == ["2", "3"]
    assert roll_back(client, name, "champion", "x") == ("2", "3")


def test_a_second_alias_has_its_own_history(model):
    client, name, _ = model
    set_alias(client, name, "1", "champion")
    set_alias(client, name, "2", "canary")
    assert history(client, name, "canary") == ["2"]
    assert history(client, name, "champion") == ["1"]


def test_versions_are_listed_the_newest_first_with_what_is_gone(model, capsys):
    """Of version 2 the run was deleted: its row says so, and the others are shown."""
    client, name, uri = model
    decide_alias(client, name, "1", "champion", says(True))
    for number, vlb in (("1", 4.5), ("3", 4.3)):
        values = {"dataset_fingerprint": "d" * 64, "vlb_bpd": vlb}
        client.log_text(client.get_model_version(name, number).run_id, json.dumps(values), "results/summary.json")
    client.delete_run(client.get_model_version(name, "2").run_id)
    listed = open_versions(name, uri)
    assert [each.number for each in listed] == ["3", "2", "1"]
    assert listed[2].aliases == ["champion"]
    assert listed[0].metrics == {"vlb_bpd": 4.3}
    assert listed[1].metrics == {}
    assert "version 2 has no scores of its own" in listed[1].problem
    assert registry_cli.main(["list", name, "--tracking-uri", uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[2]["reason"] == "beside None"
    assert registry_cli.main(["list", name, "--tracking-uri", uri]) == 0
    shown = capsys.readouterr().out
    assert "champion" in shown
    assert "no scores of its own" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("deleted", "back"), [(["2"], ("1", "3")), (["3"], ("2", "3")), (["2", "3"], ("1", "3")), (["1"], ("2", "3"))]
)
def test_deleted_versions_are_passed_over_on_the_way_back(model, deleted, back):
    client, name, _ = model
    for number in ("1", "2", "3"):
        set_alias(client, name, number, "champion")
    for number in deleted:
        client.delete_model_version(name, number)
    assert roll_back(client, name, "champion", "sevens") == back
    assert version_of_alias(client, name, "champion") == back[0]
    assert history(client, name, "champion")[-1] == back[0]


def test_where_all_earlier_versions_were_deleted_that_is_said(model):
    client, name, _ = model
    for number in ("1", "2", "3"):
        set_alias(client, name, number, "champion")
    for number in ("1", "2"):
        client.delete_model_version(name, number)
    with pytest.raises(InputError, match=r"version 3 has been champion, and none before is left \(deleted: 1, 2\)"):
        roll_back(client, name, "champion", "sevens")


def test_rolling_back_by_command(model, capsys):
    client, name, uri = model
    set_alias(client, name, "1", "champion")
    assert registry_cli.main(["rollback", name, "--tracking-uri", uri]) == 2
    assert "none before" in capsys.readouterr().err
    set_alias(client, name, "2", "champion")
    assert registry_cli.main(["rollback", name, "--tracking-uri", uri, "--reason", "sevens"]) == 0
    assert capsys.readouterr().out == f"{name} version 1 is champion again, instead of version 2\n"


def test_a_model_that_is_not_there_is_bad_input(store, capsys):
    uri, _ = store
    assert registry_cli.main(["list", "nothing", "--tracking-uri", uri]) == 2
    assert "NAME = nothing: " in capsys.readouterr().err
    assert registry_cli.main(["promote", "nothing", "1", "--tracking-uri", uri]) == 2
    assert promotion.CHALLENGER == "challenger"
