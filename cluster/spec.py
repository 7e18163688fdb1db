"""What a job is, as values: the command, what it asks for, and what the end of an attempt means for it."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")

PREEMPTED = 75
KILLED = {137: 9, 143: 15}  # a shell's way to say that its command was killed by a signal
MAX_FAULTS = 3

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bundle = dict[str, Amount]
Gang = Annotated[list[Bundle], Field(min_length=1)]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JobSpec(_Value):
    """A job as it is submitted.

    Attributes:
        name: for people; need not be unique.
        command: the words of the command.
        priority: the higher runs first.
        snapshot: SHA-256 of the code archive that the command runs in.
        environment: variables for the command, over those of the cluster.
        gangs: the resources the job will ask Ray for, one bundle per process; alternatives, in order.
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
        status: `succeeded`, `failed` or `stopped`: what Ray says; `lost`: Ray does not know the attempt any more;
            `refused`: Ray would not take it.
        exit_code: the command's, None where Ray has none; negative for a signal.
        message: Ray's words.
    """

    status: Literal["succeeded", "failed", "stopped", "lost", "refused"]
    exit_code: int | None = None
    message: str = ""


class Verdict(_Value):
    """What follows for the job.

    Attributes:
        state: the job's next state; `queued` means that it will be tried again.
        reason: why, for people.
        fault: whether the attempt ended by no doing of the command, which only MAX_FAULTS attempts may.
    """

    state: State
    reason: str
    fault: bool = False


def judge(ending: Ending, cancelled: bool, faults: int) -> Verdict:
    """The job's next state after an attempt.

    Args:
        ending: how the attempt ended.
        cancelled: whether someone asked for the job to be cancelled.
        faults: how many earlier attempts ended in a fault.
    """
    code = ending.exit_code
    if code in KILLED:
        return judge(ending.model_copy(update={"exit_code": -KILLED[code]}), cancelled, faults)
    if ending.status == "succeeded":
        return Verdict(state="succeeded", reason="exit 0")
    if cancelled:
        return Verdict(state="cancelled", reason="cancelled while it ran")
    if ending.status == "stopped":
        return Verdict(state="cancelled", reason="stopped through Ray")
    if code == PREEMPTED:
        return Verdict(state="queued", reason="preempted after a checkpoint (exit 75); it will go on")
    if ending.status == "failed" and code is not None and code >= 0:
        return Verdict(state="failed", reason=f"exit {code}" + (": bad input" if code == 2 else ""))
    return _fault(ending, faults)


def _fault(ending: Ending, faults: int) -> Verdict:
    if ending.exit_code is not None:
        what = f"killed by signal {-ending.exit_code}"
    elif ending.status == "lost":
        what = "Ray does not know the attempt any more"
    else:
        what = ending.message or "Ray gave no reason"
    if faults + 1 >= MAX_FAULTS:
        return Verdict(state="failed", reason=f"{what}; gave up after {MAX_FAULTS} such attempts", fault=True)
    return Verdict(state="queued", reason=f"{what}; it will be tried again", fault=True)


def total(gang: Sequence[Bundle]) -> str:
    """A gang's resources for people: `2 x (1 CPU, 1 GPU)`."""
    kinds: list[Bundle] = []
    for bundle in gang:
        if bundle not in kinds:
            kinds.append(bundle)
    parts = [f"{list(gang).count(kind)} x ({amounts(kind)})" for kind in kinds]
    return " + ".join(parts)


def amounts(bundle: Bundle) -> str:
    """A bundle for people: `1 CPU, 1 GPU`."""
    shown = {name: math.floor(amount) if amount == math.floor(amount) else amount for name, amount in bundle.items()}
    return ", ".join(f"{amount} {name}" for name, amount in shown.items()) or "nothing"
