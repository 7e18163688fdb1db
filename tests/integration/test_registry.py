"""A second version of a registered model meets the gate, is promoted by hand, and is taken back."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from diffusion.package import verify_package
from tests.conftest import Cluster
from tests.integration.conftest import FinishedRun
from trainer.run.paths import RunPaths

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_a_version_that_is_not_better_is_challenger_until_it_is_promoted_by_hand(
    cluster: Cluster, tiny: Path, finished: FinishedRun
) -> None:
    """A run of a few steps beside the one that was registered first; then it is lengthened, and at last taken back."""
    sets = ["run.name=worse", "evaluation.metrics=[vlb, continuous_vlb, nll]"]
    words = [word for item in sets for word in ("--set", item)]
    assert "registered tiny version 1 as champion: vlb_bpd" in finished.output
    assert "there was no champion" in finished.output
    second = cluster.run("trainer", "--config", str(tiny), *words, "--set", "training.steps=20")
    assert "registered tiny version 2 as challenger: vlb_bpd" in second
    assert "beside version 1's" in second
    assert ": worse, " in second
    assert "paired" in second

    told = cluster.run("trainer.compare", str(finished.summary["run_id"]), "tiny@2", "--metrics", "vlb_bpd")
    assert "likelihood view: worse" in told
    assert "paired" in told

    refused = cluster.run("trainer.registry", "promote", "tiny", "2", expect=1)
    assert "tiny version 2: not promoted: vlb_bpd" in refused
    forced = cluster.run("trainer.registry", "promote", "tiny", "2", "--force", "--reason", "a test")
    assert "tiny version 2: champion: by hand: a test; the gate: vlb_bpd" in forced

    lengthened = cluster.run("trainer", "--config", str(tiny), *words, "--set", "training.steps=30")
    assert "registered tiny version 3 as" in lengthened
    assert "beside version 2's" in lengthened  # whose run has other results by now
    back = cluster.run("trainer.registry", "rollback", "tiny")
    again = back if "version 1 is champion again" in back else cluster.run("trainer.registry", "rollback", "tiny")
    assert "tiny version 1 is champion again" in again
    listed = {each["number"]: each for each in json.loads(cluster.run("trainer.registry", "list", "tiny", "--json"))}
    assert listed["1"]["aliases"] == ["champion"]
    assert listed["2"]["decision"] == "rolled back"
    assert listed["1"]["metrics"]["vlb_bpd"] == finished.summary["vlb_bpd"]
    assert len({each["metrics"]["vlb_bpd"] for each in listed.values()}) == 3


def test_a_run_begins_with_the_weights_of_a_registered_model(
    cluster: Cluster, tiny: Path, finished: FinishedRun
) -> None:
    sets = ["run.name=warm", "training.init_from=tiny@champion", "training.steps=1", "evaluation.metrics=[vlb]"]
    words = [word for item in [*sets, "run.register_as=null"] for word in ("--set", item)]
    output = cluster.run("trainer", "--config", str(tiny), *words)
    paths = RunPaths(finished.paths.root.with_name("warm"))
    digest = verify_package(paths.initial)
    assert digest == finished.summary["package_sha256"]  # the champion again, once the test before took back the other
    assert json.loads(paths.identity.read_text())["config"]["training"]["init_sha256"] == digest
    assert f"begins with tiny@champion ({digest[:8]}): " in output
    assert "parts are the package's" in output
    assert json.loads((paths.package / "manifest.json").read_text())["initialised_from"] == digest
    before, after = load_file(paths.initial / "model.safetensors"), load_file(paths.package / "model.safetensors")
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert 0 < moved < 0.01  # by one step
