"""Where the process group listens: at the address Ray knows the node by, and at no other.

gloo and NCCL use the interface that holds it. Left to themselves they guess, from the host name or the order of the
interfaces, and on a machine with several networks two nodes may guess networks that do not reach each other. Ray's
address is one that the nodes do reach each other by. torch's store, in which the ranks find each other, would listen at
every address of rank 0's machine, and asks nobody who he is; given a socket it listens there.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig, config as ray_config

_listening: list[socket.socket] = []  # rank 0's, between `listen` and `join`


@dataclass
class NodeTorchConfig(TorchConfig):
    """Ray Train's process group, made at each node's own address alone."""

    @property
    def backend_cls(self) -> Any:  # noqa: ANN401 - a Backend class, private in Ray
        """Ray's backend, which makes the process group as ours do."""
        base: Any = super().backend_cls

        class NodeBackend(base):
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:  # noqa: ANN401
                worker_group.execute(prepare)
                host, port = worker_group.execute_single(0, listen)
                size, backend, seconds = len(worker_group), backend_config.backend, backend_config.timeout_s
                ranks = [(rank, size, host, port, backend, seconds) for rank in range(size)]
                ray.get([worker_group.execute_single_async(each[0], join, *each) for each in ranks])

        return NodeBackend


def prepare() -> None:
    """Give this worker the interface of its node, and its place among the ranks in the usual variables."""
    choose_interface()
    ray_config._set_torch_distributed_env_vars()


def listen() -> tuple[str, int]:
    """Take a port at this node's address, for the store that rank 0 is about to open; returns both."""
    host = ray.util.get_node_ip_address()
    own = (
        interface_of(host, _addresses()) is not None
    )  # or address translation leads to this machine, at any of its own
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    _listening[:] = [socket.create_server((host if own else "", 0), family=family, backlog=1024)]
    return host, _listening[0].getsockname()[1]


def join(rank: int, size: int, host: str, port: int, backend: str, timeout_s: float) -> None:
    """Make the process group.

    Args:
        rank: of this worker.
        size: number of workers.
        host: address of the store.
        port: its port.
        backend: gloo or nccl.
        timeout_s: how long its operations may take.
    """
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    timeout = timedelta(seconds=timeout_s)
    descriptor = _listening.pop().detach() if rank == 0 else None
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        host, port, size, rank == 0, timeout, master_listen_fd=descriptor
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def choose_interface() -> None:
    """Set this process's interface from its node's address."""
    set_interface(interface_of(ray.util.get_node_ip_address(), _addresses()), os.environ)


def _addresses() -> dict[str, list[str]]:
    return {name: [entry.address for entry in entries] for name, entries in psutil.net_if_addrs().items()}


def interface_of(ip: str, addresses: Mapping[str, Sequence[str]]) -> str | None:
    """The interface that holds an address.

    Args:
        ip: IPv4 or IPv6.
        addresses: of every interface; link-layer addresses among them are passed over.

    Returns:
        Its name; None where no interface holds it, as behind address translation.
    """
    wanted = ip_address(ip)
    return next((name for name, held in addresses.items() if any(_is(wanted, address) for address in held)), None)


def _is(wanted: Any, address: str) -> bool:  # noqa: ANN401 - IPv4Address or IPv6Address
    try:
        return ip_address(address.split("%")[0]) == wanted
    except ValueError:
        return False


def set_interface(interface: str | None, environment: MutableMapping[str, str]) -> None:
    """Name the interface to gloo and NCCL, except where the user has; None leaves the choice to them."""
    if interface:
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
        # without the sign NCCL takes every interface whose name begins so, eth1 and eth10 alike
        environment.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
