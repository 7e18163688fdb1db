"""The Ray cluster of RAY_ADDRESS, or a local one: whether it answers, joining it, and whether it has GPUs."""

import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffusion.private_folder import private_folder, read_own, use_private_token, warn_of_others
from trainer.config.run_config import RunConfig
from trainer.errors import InputError, RunFailedError, last_line
from trainer.run.provenance import ROOT

CONNECT_TIMEOUT_S = 10.0
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # with 0 Ray uses the loopback address alone, on Linux too


def check_ray_address() -> None:
    """Check that something answers at RAY_ADDRESS; `ray.init` would try a dead address for minutes.

    Raises:
        InputError: nothing answers there.
    """
    host, separator, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
    if separator and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise InputError(
                f"RAY_ADDRESS = {host}:{port}: no Ray cluster answers: {error}; allowed: the address of a running "
                "cluster, or none to start a local one"
            ) from None


def connect_ray(dashboard: bool = False) -> None:
    """Join the cluster at RAY_ADDRESS or start a local one, without Ray's log output.

    A local one listens on this machine alone, and its files are for this user alone.

    Args:
        dashboard: whether a local cluster gets one, which Ray Tune needs; it leaves files in the temporary folder.

    Raises:
        RunFailedError: there is no cluster at RAY_ADDRESS.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", **RAY_TRAIN_SETTINGS} | os.environ
    import ray
    from ray._common.utils import get_ray_address_file
    from ray._private import ray_constants
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    logging.getLogger("ray").setLevel(logging.ERROR)
    local: dict[str, Any] = {}
    address = os.environ.get("RAY_ADDRESS")
    if not address and (address := read_own(Path(get_ray_address_file(None)))):  # which anybody may have written
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    if address in (None, "", "local") and not ray.is_initialized():
        address = "local"
        os.environ[LOOPBACK_VARIABLE] = "0"  # for Ray's own processes
        ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read it
        use_private_token()
        local = {"_temp_dir": f"{private_folder()}/ray"}  # Ray opens that to everybody
    try:
        ray.init(
            address,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
            ignore_reinit_error=True,
            runtime_env=_checkout(),
            **local,
        )
    except ConnectionError as error:
        raise RunFailedError(f"RAY_ADDRESS = {os.environ.get('RAY_ADDRESS')}: {last_line(error)}") from error
    if (folder := _session_folder()) is not None:
        warn_of_others(folder)


def _session_folder() -> Path | None:
    worker = sys.modules.get("ray._private.worker")
    node: Any = getattr(worker, "_global_node", None)
    return None if node is None else Path(node.get_session_dir_path())


def _checkout() -> dict[str, Any] | None:
    """What a cluster that was started elsewhere must be told for its workers to import this checkout.

    Nothing where Ray tells them: they look into the working directory first, and a job has its files with it. To tell
    them costs time, since no worker that is ready can be used.
    """
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if in_job or "RAY_ADDRESS" not in os.environ or Path.cwd() == ROOT:
        return None
    return {"env_vars": {"PYTHONPATH": str(ROOT)}}


def end_local_cluster() -> None:
    """End the cluster that this process has started, if it has; the process must then end at once.

    An orderly `ray.shutdown` would wait for threads that are inside of Ray's calls, or take away what they use. What is
    killed with its parent, as the raylet is, leaves processes of its own behind for minutes.
    """
    worker = sys.modules.get("ray._private.worker")
    node: Any = getattr(worker, "_global_node", None)  # which is not there while Ray is being imported
    if node is None or not node.head:
        return
    for started in node.all_processes.values():
        for each in started:
            for pid in [*_descendants(each.process.pid), each.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    children = list[int]()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, file.read_text().split())
    return [each for child in children for each in (*_descendants(child), child)]


def resolve_device(config: RunConfig) -> str:
    """cpu or cuda: `auto` takes GPUs where the cluster has one for every worker that there must be."""
    import ray

    if config.parallel.device != "auto":
        return config.parallel.device
    return "cuda" if ray.cluster_resources().get("GPU", 0) >= config.parallel.min_workers else "cpu"


RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process fewer; nothing here asks for its answer
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # how late Ray Train sees that its workers are done
}
