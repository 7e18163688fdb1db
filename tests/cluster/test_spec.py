"""What the end of an attempt means for its job."""

import pytest

from cluster.spec import MAX_FAULTS, Asked, Beat, Ending, next_transition

CANCEL, LEAVE, FINISH, RESTART = (Asked(to=to, reason="why") for to in ("cancel", "leave", "finish", "restart"))


@pytest.mark.parametrize(
    ("ending", "asked", "state", "fault"),
    [
        (Ending(status="succeeded", exit_code=0), None, "succeeded", False),
        (Ending(status="succeeded", exit_code=0), CANCEL, "succeeded", False),
        (Ending(status="succeeded", exit_code=0), LEAVE, "succeeded", False),
        (Ending(status="failed", exit_code=75), None, "queued", False),
        (Ending(status="failed", exit_code=75), CANCEL, "cancelled", False),
        (Ending(status="failed", exit_code=75), LEAVE, "queued", False),
        (Ending(status="failed", exit_code=75), FINISH, "failed", False),
        (Ending(status="failed", exit_code=75), RESTART, "queued", True),
        (Ending(status="failed", exit_code=1), None, "failed", False),
        (Ending(status="failed", exit_code=1), LEAVE, "failed", False),
        (Ending(status="failed", exit_code=2), None, "failed", False),
        (Ending(status="failed", exit_code=-9), None, "queued", True),
        (Ending(status="failed", exit_code=-9), LEAVE, "queued", True),
        (Ending(status="failed", exit_code=-15), CANCEL, "cancelled", False),
        (Ending(status="failed", exit_code=137), None, "queued", True),
        (Ending(status="failed", exit_code=139), None, "failed", False),
        (Ending(status="failed"), None, "queued", True),
        (Ending(status="stopped"), None, "cancelled", False),
        (Ending(status="stopped", exit_code=-9), LEAVE, "queued", False),
        (Ending(status="stopped", exit_code=1), LEAVE, "queued", False),
        (Ending(status="stopped"), FINISH, "failed", False),
        (Ending(status="stopped"), RESTART, "queued", True),
        (Ending(status="stopped"), CANCEL, "cancelled", False),
        (Ending(status="lost"), None, "queued", True),
        (Ending(status="lost"), LEAVE, "queued", True),
        (Ending(status="lost"), CANCEL, "cancelled", False),
        (Ending(status="refused", message="too large"), None, "queued", True),
    ],
)
def test_transition(ending, asked, state, fault):
    transition = next_transition(ending, asked, faults=0)
    assert (transition.state, transition.fault) == (state, fault)


def test_reasons_name_the_cause():
    assert next_transition(Ending(status="failed", exit_code=2), None, 0).reason == "exit 2: bad input"
    for code in (-9, 137):
        assert "signal 9" in next_transition(Ending(status="failed", exit_code=code), None, 0).reason
    assert "out of disk" in next_transition(Ending(status="refused", message="out of disk"), None, 0).reason
    left = next_transition(Ending(status="failed", exit_code=75), LEAVE, 0).reason
    assert left == "why; left after a checkpoint (exit 75); it will go on"
    stopped = next_transition(Ending(status="stopped"), LEAVE, 0).reason
    assert stopped == "why; left by Ray, since it did not stop by itself; it will go on"


def test_faults_end_but_preemptions_do_not():
    lost = next_transition(Ending(status="lost"), None, faults=MAX_FAULTS - 1)
    assert lost.state == "failed"
    assert f"gave up after {MAX_FAULTS}" in lost.reason
    assert next_transition(Ending(status="lost"), None, faults=0, retries=0).state == "failed"
    assert next_transition(Ending(status="lost"), None, faults=8, retries=9).state == "queued"
    assert next_transition(Ending(status="failed", exit_code=75), None, faults=10**6).state == "queued"


def test_exit_75_without_progress_is_a_fault():
    again = next_transition(Ending(status="failed", exit_code=75), None, faults=0, progressed=False)
    assert (again.state, again.fault) == ("queued", True)
    assert again.reason.startswith("exit 75 without a newer checkpoint than the attempt before")
    assert not next_transition(Ending(status="failed", exit_code=75), LEAVE, faults=0, progressed=False).fault


def test_a_heartbeat_in_words():
    assert Beat(step=3, steps=9, doing="training").words() == "training, step 3 of 9"
    assert Beat(doing="evil\x1b[31m\n" + "x" * 999).words() == "evil[31m" + "x" * 192
    assert Beat.model_validate({"unknown": 1}).words() == "its heartbeats come"
