"""What the end of an attempt means for its job."""

import pytest

from cluster.spec import MAX_FAULTS, Ending, format_gang, next_transition


@pytest.mark.parametrize(
    ("ending", "cancelled", "state", "fault"),
    [
        (Ending(status="succeeded", exit_code=0), False, "succeeded", False),
        (Ending(status="succeeded", exit_code=0), True, "succeeded", False),
        (Ending(status="failed", exit_code=75), False, "queued", False),
        (Ending(status="failed", exit_code=75), True, "cancelled", False),
        (Ending(status="failed", exit_code=1), False, "failed", False),
        (Ending(status="failed", exit_code=2), False, "failed", False),
        (Ending(status="failed", exit_code=-9), False, "queued", True),
        (Ending(status="failed", exit_code=-15), True, "cancelled", False),
        (Ending(status="failed", exit_code=137), False, "queued", True),
        (Ending(status="failed", exit_code=139), False, "failed", False),
        (Ending(status="failed"), False, "queued", True),
        (Ending(status="stopped"), False, "cancelled", False),
        (Ending(status="lost"), False, "queued", True),
        (Ending(status="lost"), True, "cancelled", False),
        (Ending(status="refused", message="too large"), False, "queued", True),
    ],
)
def test_transition(ending, cancelled, state, fault):
    transition = next_transition(ending, cancelled, faults=0)
    assert (transition.state, transition.fault) == (state, fault)


def test_reasons_name_the_cause():
    assert next_transition(Ending(status="failed", exit_code=2), False, 0).reason == "exit 2: bad input"
    assert "signal 9" in next_transition(Ending(status="failed", exit_code=-9), False, 0).reason
    assert "out of disk" in next_transition(Ending(status="refused", message="out of disk"), False, 0).reason


def test_faults_end_but_preemptions_do_not():
    lost = next_transition(Ending(status="lost"), False, faults=MAX_FAULTS - 1)
    assert lost.state == "failed"
    assert f"gave up after {MAX_FAULTS}" in lost.reason
    assert next_transition(Ending(status="failed", exit_code=75), False, faults=10**6).state == "queued"


def test_totals_are_for_people():
    gang = [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 0.5}, {"CPU": 1.0, "GPU": 1.0}, {}]
    assert format_gang(gang) == "2 x (1 CPU, 1 GPU) + 1 x (0.5 CPU) + 1 x (nothing)"
