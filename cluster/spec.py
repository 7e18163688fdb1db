"""Values of a job: its command, the resources it asks for, and its state after an attempt has ended."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.resources import DRIVER, Bundle, Gang

State = Literal["queued", "starting", "running", "succeeded", "failed", "cancelled"]
OPEN_STATES: tuple[State, ...] = ("starting", "running")
END_STATES: tuple[State, ...] = ("succeeded", "failed", "cancelled")
AtTheLimit = Literal["requeue", "fail"]
AfterHow = Literal["ok", "any"]

PREEMPTED_EXIT_CODE = 75
SIGNAL_OF_EXIT_CODE = {137: 9, 143: 15}  # 128 + signal: how a shell reports that its command was killed
MAX_FAULTS = 3
MAX_PRIORITY = 10**6
MAX_WORDS = 200

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Step = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]


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
        gangs: what the command asks Ray for, one bundle per process; alternatives, in order of preference.
        driver: what the command itself takes.
        user: whose it is.
        queue: the queue (team) that it is charged to.
        max_runtime_s: an attempt runs no longer than this; None for as long as it likes.
        at_the_limit: whether it goes on in another attempt, or fails, when it has run that long.
        retries: how many attempts may end in a fault before it fails.
        after: jobs that have to end before it starts, and whether they have to succeed (`ok`) or only end (`any`).
        says_when: whether it sends heartbeats that say when its gang has formed; another is running once Ray runs it.
        key: of two unfinished jobs with the same key there is one; None for as many as are submitted.
    """

    name: Name
    command: Annotated[list[str], Field(min_length=1)]
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    snapshot: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    environment: dict[str, str] = {}
    gangs: Annotated[list[Gang], Field(min_length=1)] = [[]]
    driver: Bundle = DRIVER
    user: Annotated[str, Field(min_length=1, max_length=100)] = "unknown"
    queue: Name = "default"
    max_runtime_s: Seconds | None = None
    at_the_limit: AtTheLimit = "requeue"
    retries: Annotated[int, Field(ge=0, le=1000)] = MAX_FAULTS - 1
    after: dict[int, AfterHow] = {}
    says_when: bool = False
    key: Annotated[str, Field(max_length=200)] | None = None


class Ending(_Value):
    """How an attempt ended.

    Attributes:
        status: `succeeded`, `failed` or `stopped`, as Ray reports; `lost`: Ray no longer knows the attempt;
            `refused`: Ray rejected it; `unstarted`: Ray was never asked to start it.
        exit_code: the command's, -n for signal n; None if Ray reports none.
        message: Ray's explanation.
    """

    status: Literal["succeeded", "failed", "stopped", "lost", "refused", "unstarted"]
    exit_code: int | None = None
    message: str = ""


class Alive(_Value):
    """An attempt that has not ended.

    Attributes:
        started: whether Ray has started its command; if not, it waits in Ray.
        message: Ray's words.
    """

    started: bool
    message: str = ""


class Beat(_Value):
    """A heartbeat; further fields, and all that are missing, are nothing that the queue needs.

    Attributes:
        step: the step that the program is at.
        steps: how many there are.
        saved_step: the step of its newest checkpoint.
        state: `starting` while it waits for its gang, `running` once that has formed.
        doing: what it does, for people.
        at: when it was heard, in seconds since the epoch.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    step: Step | None = None
    steps: Step | None = None
    saved_step: Step | None = None
    state: Literal["starting", "running"] = "running"
    doing: Annotated[str, Field(max_length=2000)] = ""
    at: float = 0.0

    def words(self) -> str:
        """What the program does, for people."""
        where = f"step {self.step} of {self.steps}" if self.step is not None and self.steps else ""
        doing = "".join(each for each in self.doing if each.isprintable())[:MAX_WORDS]
        return ", ".join(each for each in (doing, where) if each) or "its heartbeats come"


class Asked(_Value):
    """What the queue asked of an attempt.

    Attributes:
        to: `cancel`: to stop for good; `leave`: to write a checkpoint and give its machines back; `finish`: to do so
            for good, since it has run as long as it may; `limit`: to do so, and to go on in another attempt; `restart`:
            to leave, since its gang did not form in time.
        reason: why, as shown to users.
    """

    to: Literal["cancel", "leave", "finish", "limit", "restart"]
    reason: str = ""


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


def next_transition(
    ending: Ending, asked: Asked | None, faults: int, retries: int = MAX_FAULTS - 1, progressed: bool = True
) -> Transition:
    """The job's next state after an attempt.

    Args:
        ending: how the attempt ended.
        asked: what the queue asked of it; None if nothing.
        faults: number of earlier attempts that ended in a fault.
        retries: how many may.
        progressed: whether it has a newer checkpoint than the attempts before it.
    """
    code = ending.exit_code
    if code in SIGNAL_OF_EXIT_CODE:
        code = -SIGNAL_OF_EXIT_CODE[code]
    if ending.status == "succeeded":
        return Transition(state="succeeded", reason="exit 0")
    if ending.status == "unstarted":
        return _as_asked(asked or Asked(to="leave", reason="parked"), False, faults, retries, unstarted=True)
    checkpointed = code == PREEMPTED_EXIT_CODE
    if asked is not None and (checkpointed or ending.status == "stopped" or asked.to == "cancel"):
        return _as_asked(asked, checkpointed, faults, retries, progressed=progressed)
    if ending.status == "stopped":
        return Transition(state="cancelled", reason="stopped through Ray")
    if checkpointed and progressed:
        return Transition(state="queued", reason="preempted after a checkpoint (exit 75); it will go on")
    if ending.status == "failed" and code is not None and code >= 0 and not checkpointed:
        return Transition(state="failed", reason=f"exit {code}" + (": bad input" if code == 2 else ""))
    return _fault(_cause(ending, code), faults, retries)


def _cause(ending: Ending, code: int | None) -> str:
    if code == PREEMPTED_EXIT_CODE:
        return "exit 75 without a newer checkpoint than the attempt before"
    if code is not None:
        return f"killed by signal {-code}"
    if ending.status == "lost":
        return "Ray does not know the attempt any more"
    return ending.message or "Ray gave no reason"


def _as_asked(
    asked: Asked, checkpointed: bool, faults: int, retries: int, unstarted: bool = False, progressed: bool = True
) -> Transition:
    how = "after a checkpoint (exit 75)" if checkpointed else "by Ray, since it did not stop by itself"
    if asked.to == "cancel":
        return Transition(state="cancelled", reason="cancelled while it ran")
    if unstarted:
        return Transition(state="queued", reason=f"{asked.reason}; it had not started")
    match asked.to:
        case "limit" if not progressed:
            return _fault(f"{asked.reason}; left {how}, with nothing new to go on from", faults, retries)
        case "leave" | "limit":
            return Transition(state="queued", reason=f"{asked.reason}; left {how}; it will go on")
        case "finish":
            return Transition(state="failed", reason=f"{asked.reason}; left {how}")
        case "restart":
            return _fault(asked.reason, faults, retries)


def _fault(cause: str, faults: int, retries: int) -> Transition:
    if faults >= retries:
        return Transition(state="failed", reason=f"{cause}; gave up after {faults + 1} such attempts", fault=True)
    return Transition(state="queued", reason=f"{cause}; it will be tried again", fault=True)
