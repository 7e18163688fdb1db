"""Values of a job: its command, the resources it asks for, and its state after an attempt has ended."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
END_STATES: tuple[State, ...] = ("succeeded", "failed", "cancelled")

PREEMPTED_EXIT_CODE = 75
SIGNAL_OF_EXIT_CODE = {137: 9, 143: 15}  # 128 + signal: how a shell reports that its command was killed
MAX_FAULTS = 3

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bundle = dict[str, Amount]
Gang = Annotated[list[Bundle], Field(min_length=1)]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JobSpec(_Value):
    """A job as submitted.

    Attributes:
        name: shown to users; need not be unique.
        command: the command and its arguments.
        priority: higher runs first.
        snapshot: SHA-256 of the code archive that the command runs in.
        environment: environment variables of the command, overriding those of the cluster.
        gangs: the resources to ask Ray for, one bundle per process; alternatives, in order of preference.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    command: Annotated[list[str], Field(min_length=1)]
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    snapshot: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    environment: dict[str, str] = {}
    gangs: Annotated[list[Gang], Field(min_length=1)] = [[{"CPU": 1.0}]]


class Ending(_Value):
    """How an attempt ended.

    Attributes:
        status: `succeeded`, `failed` or `stopped`, as Ray reports; `lost`: Ray no longer knows the attempt;
            `refused`: Ray rejected it.
        exit_code: the command's, -n for signal n; None if Ray reports none.
        message: Ray's explanation.
    """

    status: Literal["succeeded", "failed", "stopped", "lost", "refused"]
    exit_code: int | None = None
    message: str = ""


class Transition(_Value):
    """A job's change of state after an attempt.

    Attributes:
        state: the next state; `queued` means that the job will be tried again.
        reason: why, as shown to users.
        fault: whether something other than the command ended the attempt; a job fails after MAX_FAULTS of those.
    """

    state: State
    reason: str
    fault: bool = False


def next_transition(ending: Ending, cancelled: bool, faults: int) -> Transition:
    """The job's next state after an attempt.

    Args:
        ending: how the attempt ended.
        cancelled: whether cancellation was requested.
        faults: number of earlier attempts that ended in a fault.
    """
    code = ending.exit_code
    if code in SIGNAL_OF_EXIT_CODE:
        return next_transition(ending.model_copy(update={"exit_code": -SIGNAL_OF_EXIT_CODE[code]}), cancelled, faults)
    if ending.status == "succeeded":
        return Transition(state="succeeded", reason="exit 0")
    if cancelled:
        return Transition(state="cancelled", reason="cancelled while it ran")
    if ending.status == "stopped":
        return Transition(state="cancelled", reason="stopped through Ray")
    if code == PREEMPTED_EXIT_CODE:
        return Transition(state="queued", reason="preempted after a checkpoint (exit 75); it will go on")
    if ending.status == "failed" and code is not None and code >= 0:
        return Transition(state="failed", reason=f"exit {code}" + (": bad input" if code == 2 else ""))
    return _fault(ending, faults)


def _fault(ending: Ending, faults: int) -> Transition:
    if ending.exit_code is not None:
        cause = f"killed by signal {-ending.exit_code}"
    elif ending.status == "lost":
        cause = "Ray does not know the attempt any more"
    else:
        cause = ending.message or "Ray gave no reason"
    if faults + 1 >= MAX_FAULTS:
        return Transition(state="failed", reason=f"{cause}; gave up after {MAX_FAULTS} such attempts", fault=True)
    return Transition(state="queued", reason=f"{cause}; it will be tried again", fault=True)


def format_gang(gang: Sequence[Bundle]) -> str:
    """A gang's resources as text: `2 x (1 CPU, 1 GPU)`."""
    kinds: list[Bundle] = []
    for bundle in gang:
        if bundle not in kinds:
            kinds.append(bundle)
    parts = [f"{list(gang).count(kind)} x ({format_bundle(kind)})" for kind in kinds]
    return " + ".join(parts)


def format_bundle(bundle: Bundle) -> str:
    """A bundle as text: `1 CPU, 1 GPU`."""
    shown = {name: math.floor(amount) if amount == math.floor(amount) else amount for name, amount in bundle.items()}
    return ", ".join(f"{amount} {name}" for name, amount in shown.items()) or "nothing"
