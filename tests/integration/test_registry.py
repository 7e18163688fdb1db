"""A second version of a registered model meets the gate, is promoted by hand, and is taken back."""

import json
from pathlib import Path

import pytest

from tests.conftest import Cluster
from tests.integration.conftest import FinishedRun, configured

pytestmark = pytest.mark.integration


def test_a_version_that_is_not_better_is_challenger_until_it_is_promoted_by_hand(
    cluster: Cluster, tiny: Path, finished: FinishedRun
) -> None:
    """A run of a third of the steps is worse; a champion of another registered name, so that others keep theirs."""
    sets = ["run.register_as=gated", "run.gate.likelihood_gap=100"]
    words = {
        name: [word for item in (*sets, f"run.name={name}", *more) for word in ("--set", item)]
        for name, more in {"good": ["training.steps=60"], "worse": ["training.steps=20"]}.items()
    }
    first = cluster.run("trainer", "--config", str(tiny), *words["good"])
    assert "registered gated version 1 as champion: vlb_bpd" in first
    assert "there was no champion" in first
    second = cluster.run("trainer", "--config", str(tiny), *words["worse"])
    assert "registered gated version 2 as challenger: vlb_bpd" in second
    assert "beside version 1's" in second
    assert ": worse, " in second
    assert "paired" in second
    assert "is done" in cluster.run("trainer", "--config", str(tiny), *words["worse"])

    runs = [str(configured(cluster, tiny, *sets, f"run.name={name}")[1].root) for name in words]
    verdicts = json.loads(cluster.run("trainer.compare", *runs, "--json"))
    assert verdicts["others"][0]["metrics"]["vlb_bpd"]["word"] == "worse"
    run_id = json.loads((Path(runs[0]) / "results" / "summary.json").read_text())["run_id"]
    told = cluster.run("trainer.compare", run_id, runs[1], "--metrics", "vlb_bpd")
    assert "likelihood view: worse" in told
    assert "paired" in told

    refused = cluster.run("trainer.registry", "promote", "gated", "2", expect=1)
    assert "gated version 2: not promoted: vlb_bpd" in refused
    forced = cluster.run("trainer.registry", "promote", "gated", "2", "--force", "--reason", "a test")
    assert "gated version 2: champion: by hand: a test; the gate: vlb_bpd" in forced
    assert "it is champion already" in cluster.run("trainer.registry", "promote", "gated", "2")
    back = cluster.run("trainer.registry", "rollback", "gated")
    assert "gated version 1 is champion again, instead of version 2" in back
    listed = json.loads(cluster.run("trainer.registry", "list", "gated", "--json"))
    assert [(each["number"], each["aliases"], each["decision"]) for each in listed] == [
        ("2", [], "rolled back"),
        ("1", ["champion"], "champion"),
    ]
    assert "vlb_bpd" in listed[0]["metrics"]

    lengthened = cluster.run("trainer", "--config", str(tiny), *words["good"], "--set", "training.steps=70")
    assert "registered gated version 3 as" in lengthened
    assert "beside version 1's" in lengthened
    again = json.loads(cluster.run("trainer.registry", "list", "gated", "--json"))
    assert again[2]["metrics"] == listed[1]["metrics"]  # version 1's, though its run has other results by now
    assert again[0]["metrics"] != again[2]["metrics"]
