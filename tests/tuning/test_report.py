"""The table, its JSON and the heat map, from what finished, failed and missing trials left behind."""

import json
import math

import pytest
from PIL import Image

from tests.tuning.conftest import SCHEDULES, WEIGHTINGS, finish, made
from tuning.__main__ import main
from tuning.report import draw
from tuning.scores import rows


@pytest.fixture
def sweep(tmp_path):
    """linear/simple is best; linear/vlb is within its errors; cosine/simple is not; cosine/vlb failed."""
    made_here = made(tmp_path)
    with made_here.locked():
        made_here.register_name("d" * 64)
    finish(made_here.trials[0], 3.0, 0.03, 40.0)
    finish(made_here.trials[1], 3.09, 0.04, 30.0)
    finish(made_here.trials[2], 3.2, 0.04, 400.0)
    made_here.record_failure(made_here.trials[3].name, "training: loss is nan at step 7")
    return made_here


def test_the_best_and_what_cannot_be_told_from_it(sweep):
    table = rows(sweep)
    assert [row["best"] for row in table] == [["vlb_bpd"], ["frechet_classifier"], [], []]
    assert [row["indistinguishable_from_best"] for row in table] == [False, True, False, False]
    assert [row["state"] for row in table] == ["done", "done", "done", "failed"]


@pytest.mark.parametrize(("beyond", "close"), [(-1e-6, True), (1e-6, False)])
def test_not_distinguishable_ends_at_two_standard_errors_of_the_difference(tmp_path, beyond, close):
    sweep = made(tmp_path, space={"process.schedule.kind": SCHEDULES})
    finish(sweep.trials[0], 3.0, 0.03)
    finish(sweep.trials[1], 3.0 + 2 * math.hypot(0.03, 0.04) + beyond, 0.04)
    assert rows(sweep)[1]["indistinguishable_from_best"] is close


def test_the_table_says_what_a_reader_needs(sweep, capsys):
    assert main(["report", "mine"]) == 0
    output = capsys.readouterr().out
    for part in (
        "* 3.000 ± 0.030",
        "≈ 3.090 ± 0.040",
        "400",
        "within 2 standard errors of the best vlb_bpd: not distinguishable",
        "held-out images 4.6, a Gaussian 75.2, noise 655.6",
        f"failed: {sweep.trials[3].name}: training: loss is nan at step 7",
    ):
        assert part in output
    assert "loss " not in output.replace("loss is nan", "")


def test_the_report_for_machines(sweep, capsys):
    assert main(["report", "mine", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["rows"][0]["settings"] == sweep.trials[0].settings
    assert described["scale"]["frechet_classifier"] == {"heldout": 4.6, "gaussian": 75.2, "noise": 655.6}


def test_scores_of_fewer_steps_than_wanted_are_not_shown(tmp_path):
    sweep = made(tmp_path)
    finish(sweep.trials[0], 3.0, 0.1, step=19)
    finish(sweep.trials[1], 3.1, 0.1, step=40)
    finish(sweep.trials[2], 3.1, 0.1, step=20)
    assert [row["state"] for row in rows(sweep)] == ["resumable", "done", "done", "new"]
    assert rows(sweep)[0]["vlb_bpd"] is None


def test_trials_of_different_lengths_are_said_not_to_be_alike(sweep, capsys):
    from trainer import files
    from trainer.run.paths import RunPaths

    summary = RunPaths.of(sweep.trials[0].config).summary
    files.write_json(summary, {**files.read_json(summary), "step": 60})
    assert main(["report", "mine"]) == 0
    assert "trials were trained for 20, 60 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    "space",
    [
        {"process.schedule.kind": SCHEDULES},
        {"process.schedule.kind": SCHEDULES, "objective.weighting.kind": WEIGHTINGS},
        {
            "process.schedule.kind": SCHEDULES,
            "objective.weighting.kind": WEIGHTINGS,
            "optim.lr": {"kind": "grid", "values": [1e-3, 3e-4, 1e-4]},
        },
    ],
    ids=["one-path", "two-paths", "three-paths"],
)
def test_a_heat_map_of_any_number_of_paths(tmp_path, space):
    sweep = made(tmp_path, space=space)
    for number, trial in enumerate(sweep.trials[:-1]):
        finish(trial, 3 + number / 10, 0.05, 30.0 * (number + 1))
    picture = draw(sweep, tmp_path / "new" / "map.png")
    assert picture is not None
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


def test_without_a_score_there_is_no_picture(tmp_path):
    sweep = made(tmp_path)
    assert draw(sweep, tmp_path / "map.png") is None
    assert not (tmp_path / "map.png").exists()


def test_a_picture_of_another_kind_is_refused(sweep, capsys, tmp_path):
    assert main(["report", "mine", "--out", str(tmp_path / "map.jpg")]) == 2
    assert "allowed: a file that ends in .png" in capsys.readouterr().err
    assert main(["report", "mine", "--out", str(tmp_path / "map.png")]) == 0
    assert f"heat map: {tmp_path}/map.png" in capsys.readouterr().out


def test_a_score_that_is_no_number_spoils_nothing(tmp_path, capsys):
    sweep = made(tmp_path, space={"process.schedule.kind": SCHEDULES})
    with sweep.locked():
        sweep.register_name("d" * 64)
    finish(sweep.trials[0], math.nan, math.nan, math.inf)
    finish(sweep.trials[1], 3.0, 0.03, 40.0)
    assert [row["best"] for row in rows(sweep)] == [[], ["vlb_bpd", "frechet_classifier"]]
    assert [row["indistinguishable_from_best"] for row in rows(sweep)] == [False, False]
    assert draw(sweep, tmp_path / "map.png") is not None
    assert main(["report", "mine", "--json"]) == 0
    assert "NaN" not in capsys.readouterr().out
