"""The Ray Serve application: replicas that load, verify and serve models. The only module here that imports Ray."""

import io
import logging
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray._common.tls_utils import add_port_to_grpc_server
from ray._common.utils import get_ray_address_file
from ray._private import ray_constants, worker as ray_worker
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.serve._private import constants as serve_constants, replica as serve_replica
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import ApplicationStatus

from diffusion.private_folder import private_folder, read_own, use_private_token, warn_of_others
from sampler.models import ModelError, Source, load

if TYPE_CHECKING:
    from fastapi import FastAPI

LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # with 0 Ray uses the loopback address alone, on Linux too
APPLICATION_NAME = "dualview-sampler"
MAX_ONGOING_REQUESTS = 64
REQUEST_TIMEOUT_S = 600.0
RESPONSE_TIMEOUT_S = 10.0
POLL_S = 0.2
CHECKOUT = Path(__file__).resolve().parent.parent


class ServeError(RuntimeError):
    """The application cannot be deployed; the message is one line."""


@dataclass(frozen=True)
class Address:
    """The host and port on which Serve's HTTP proxy listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The URL for a client on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.port}"


@serve.ingress()
class Replica:
    """A Serve replica: loads the models in its own process and serves `api.create_app` over them."""

    def __init__(
        self, sources: Sequence[Source], torch_threads: int, device: str, signed_by: bytes | None = None
    ) -> None:
        """Load and verify every model, its network on `device`, each signed by the holder of a key if one is given.

        Raises:
            ModelError: one of them cannot be loaded; Serve then reports the deployment as failed.
        """
        import torch

        from sampler.api import Service

        torch.set_num_threads(torch_threads)
        _keep_to_loopback()
        self.service = Service([load(source, device, signed_by) for source in sources])

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """The application that Serve puts behind its proxy."""
        from sampler.api import create_app

        return create_app(self.service)

    def check_health(self) -> None:
        """Raise RuntimeError if an engine has stopped; Serve then replaces the replica."""
        if not self.service.healthy:
            raise RuntimeError("an engine has stopped")


def _keep_to_loopback() -> None:
    """Let Serve bind this replica's gRPC server, which it is about to do, to loopback instead of to all interfaces.

    That server unpickles what it is sent, and asks for a token only where Ray has one. Requests do not come through it
    unless Serve is set to call replicas by gRPC; then it stays as it is.
    """
    if not (serve_constants.RAY_SERVE_USE_GRPC_BY_DEFAULT or serve_constants.RAY_SERVE_PROXY_USE_GRPC):
        module: Any = serve_replica
        module.add_port_to_grpc_server = lambda server, _: add_port_to_grpc_server(server, "127.0.0.1:0")


deployment = serve.deployment(
    name="sampler",
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_queued_requests=MAX_ONGOING_REQUESTS,
    max_constructor_retry_count=1,
    max_surge_percent=100,  # the replica being replaced serves until its successor is ready
)(Replica)


def connect(start_if_none: bool = True) -> None:
    """Join the Ray cluster of RAY_ADDRESS, else the one on this machine, else start one that ends with this process.

    That one listens on this machine alone, and its files are for this user alone; of another, whose folder others can
    write to, it warns.
    Workers import this checkout: through PYTHONPATH, or, within a Ray job, from the job's own working directory.

    Raises:
        ServeError: no cluster is running and none may be started, or it rejects the connection.
    """
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    runtime_env = None if in_job else {"env_vars": {"PYTHONPATH": str(CHECKOUT)}}
    address = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {}
    try:
        if not address and (address := read_own(Path(get_ray_address_file(None)))):  # which anybody may have written
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        _check_listening(address)
        if not address and not start_if_none:
            raise ConnectionError
        if address in (None, "", "local"):
            address = "local"
            os.environ[LOOPBACK_VARIABLE] = "0"  # for Ray's own processes
            ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read it
            use_private_token()
            local = {"_temp_dir": f"{private_folder()}/ray"}  # Ray opens that to everybody
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env, **local)
    except OSError as error:  # a ConnectionError of ray.init is one too
        hint = "start one with: ray start --head; one that runs may need RAY_ADDRESS, or refuse this RAY_AUTH_TOKEN"
        raise ServeError(f"ray: {address or 'no address'}: no cluster to join; {hint}") from error
    node: Any = getattr(ray_worker, "_global_node", None)
    if node is not None:
        warn_of_others(Path(node.get_session_dir_path()))
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def _check_listening(address: str | None) -> None:
    """Raise OSError unless something listens at a `host:port` address; ray.init would retry a dead one for minutes."""
    host, separator, port = (address or "").rpartition(":")
    if separator and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=RESPONSE_TIMEOUT_S).close()


def deploy(
    sources: Sequence[Source], address: Address, num_cpus: float, timeout_s: float, num_gpus: float = 0.0,
    signed_by: bytes | None = None,
) -> None:  # fmt: skip
    """Deploy, or replace, the application, and return once its address answers.

    Args:
        sources: the models.
        address: where to listen.
        num_cpus: CPUs, and torch's threads, of a replica.
        timeout_s: seconds that starting may take.
        num_gpus: GPUs of a replica, or a share of one; with any, networks are evaluated there.
        signed_by: the public key whose holder has to have signed every model; None for anybody, or nobody.

    Raises:
        ModelError: a replica could not load a model; an application that was being replaced keeps serving.
        ServeError: it failed otherwise, or is not healthy within `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    _start_serve(address)
    replaces = APPLICATION_NAME in serve.status().applications
    replica = deployment.options(ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus})
    bound = replica.bind(sources, max(1, int(num_cpus)), "cuda" if num_gpus else "cpu", signed_by)
    target = serve.RunTarget(bound, name=APPLICATION_NAME, route_prefix="/")
    try:
        serve.run_many([target], wait_for_applications_running=False)
        _wait_until_running(deadline)
        _wait_for_response(address, "/healthz", (200,))
    except BaseException:
        if not replaces:
            remove()
        raise


def _start_serve(address: Address) -> None:
    """Start Serve at an address; on each cluster it keeps its first address until it is shut down."""
    options = HTTPOptions(host=address.host, port=address.port, request_timeout_s=REQUEST_TIMEOUT_S)
    try:
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=options)
    except Exception as error:
        remove()
        raise ServeError(f"serve: {address.url}: Serve cannot start there: {_last_line(str(error))}") from error
    try:
        _wait_for_response(address, "/-/healthz", (200, 503))
    except ServeError:
        hint = "if Serve runs on this cluster with another host or port, give those, or end it with: serve shutdown -y"
        raise ServeError(f"serve: {address.url}: nothing answers there; {hint}") from None


def remove() -> None:
    """Remove the application, and shut Serve down if nothing else uses it, which frees its port."""
    applications = serve.status().applications
    if not applications.keys() - {APPLICATION_NAME}:
        with redirect_stdout(io.StringIO()):  # Ray prints that the controller is dead, as it should be
            serve.shutdown()
    elif APPLICATION_NAME in applications:
        serve.delete(APPLICATION_NAME)


def _wait_until_running(deadline: float) -> None:
    while True:
        application = serve.status().applications[APPLICATION_NAME]
        reasons = "\n".join([application.message, *(d.message for d in application.deployments.values())])
        if application.status == ApplicationStatus.RUNNING:
            return
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise _deployment_error(reasons)
        if time.monotonic() > deadline:
            raise ServeError(f"serve: not running in time: {_last_line(reasons)}")
        time.sleep(POLL_S)


def _deployment_error(reasons: str) -> Exception:
    """The ModelError that a replica raised, or else a ServeError with the last line of Serve's report."""
    match = re.search(r"ModelError: (.+)", reasons)
    return ModelError(match[1]) if match else ServeError(f"serve: {_last_line(reasons)}")


def _wait_for_response(address: Address, path: str, statuses: tuple[int, ...]) -> None:
    """Request the path, past any proxy, until the response has one of the statuses."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + RESPONSE_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            status = direct.open(f"{address.url}{path}", timeout=RESPONSE_TIMEOUT_S).status
        except urllib.error.HTTPError as error:
            status = error.code
        except OSError:
            status = None
        if status in statuses:
            return
        time.sleep(POLL_S)
    raise ServeError(f"serve: {address.url}{path}: no answer within {RESPONSE_TIMEOUT_S:.0f} s")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "no reason given"
