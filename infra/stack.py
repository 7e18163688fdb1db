"""Values of a local stack: its record under `var/`, its addresses, the environment of its processes."""

import dataclasses
import json
import os
import sys
from pathlib import Path

from infra.processes import KEEP_ENVIRONMENT_READABLE, STACK_ID_VARIABLE, ProcessId

# Where each part listens if the port is free.
PREFERRED_PORTS = {"ray": 6379, "dashboard": 8265, "mlflow": 5000, "serve": 8000, "client": 10001, "agent": 52365}
NO_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_DISABLE_TELEMETRY": "1"}


class StackError(RuntimeError):
    """The local stack could not be started, reached or stopped; the message names where to look."""


@dataclasses.dataclass(frozen=True)
class Stack:
    """One Ray head and one MLflow server on loopback, as `var/stack.json` records them.

    Attributes:
        id: The value of STACK_ID_VARIABLE in the environment of every process of the stack.
        ports: Loopback port of every part, by the names of `PREFERRED_PORTS`.
        scratch: Ray's temporary directory; short, since the path of a Unix socket is limited to 107 bytes.
        kept: Whether the stack is to outlive the command that started it.
        processes: The Ray head and the MLflow server, by name; empty until they are started.
    """

    id: str
    ports: dict[str, int]
    scratch: str
    kept: bool
    processes: dict[str, ProcessId] = dataclasses.field(default_factory=dict)

    @property
    def tracking_uri(self) -> str:
        """Address of the MLflow server and of its pages."""
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def dashboard(self) -> str:
        """Address of Ray's dashboard, which also takes jobs."""
        return f"http://127.0.0.1:{self.ports['dashboard']}"

    @property
    def sampler(self) -> str:
        """Address of the sampler, once it is deployed."""
        return f"http://127.0.0.1:{self.ports['serve']}"

    def alive(self) -> bool:
        """Whether the Ray head and the MLflow server both run."""
        return bool(self.processes) and all(process.alive() for process in self.processes.values())


def load(var: Path) -> Stack | None:
    """The stack recorded under `var`, running or not; None when there is none.

    Raises:
        StackError: The record cannot be read.
    """
    try:
        record = json.loads((var / "stack.json").read_text())
        process_ids = {name: ProcessId(**process) for name, process in record.pop("processes").items()}
        return Stack(**record, processes=process_ids)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StackError(f"{var / 'stack.json'} is not the record of a stack ({error}); remove it") from error


def save(stack: Stack, var: Path) -> None:
    """Records the stack under `var`, atomically."""
    temporary = var / "stack.json.part"
    temporary.write_text(json.dumps(dataclasses.asdict(stack), indent=2) + "\n")
    temporary.replace(var / "stack.json")


def addresses(stack: Stack, var: Path) -> dict[str, str]:
    """The variables by which any command finds the stack; `var/stack.env` holds them for a shell."""
    return {
        "RAY_ADDRESS": f"127.0.0.1:{stack.ports['ray']}",
        "RAY_API_SERVER_ADDRESS": stack.dashboard,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(var / "ray_token"),
        # The only switch by which Ray on Linux takes 127.0.0.1 as the node's address and so binds to loopback alone.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "MLFLOW_TRACKING_URI": stack.tracking_uri,
        "DUALVIEW_STORAGE": str(var / "runs"),
        **NO_TELEMETRY,
    }


def environment(stack: Stack, root: Path, var: Path, gpus: int) -> dict[str, str]:
    """The environment of a process of the stack: this process's own, with the stack's variables added.

    Args:
        stack: The stack.
        root: The checkout, from which Ray's workers import our packages whatever their working directory.
        var: The directory of the stack's state.
        gpus: The number of GPUs; with 0, DeepSpeed is set to use the CPU.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_TOKEN", "RAY_NAMESPACE")}
    no_proxy = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1,localhost")))
    return {
        **inherited,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        # so that the `python` of a submitted job is the one of this environment
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH")))),
        **({} if gpus else {"DS_ACCELERATOR": "cpu"}),
        **addresses(stack, var),
        **KEEP_ENVIRONMENT_READABLE,
        STACK_ID_VARIABLE: stack.id,
    }
