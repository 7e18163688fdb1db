"""Which network interface gloo and NCCL use: the one that holds the address Ray knows the node by.

Left to themselves they guess, from the host name or the order of the interfaces, and on a machine with several networks
two nodes may guess networks that do not reach each other. Ray's address is one that the nodes do reach each other by.
"""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig


@dataclass
class NodeTorchConfig(TorchConfig):
    """Ray Train's process group, made over the interface of each node's own address."""

    @property
    def backend_cls(self) -> Any:  # noqa: ANN401 - a Backend class, private in Ray
        """Ray's backend, with the interface chosen on every worker before the process group is made."""
        base: Any = super().backend_cls

        class NodeBackend(base):
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:  # noqa: ANN401
                worker_group.execute(choose_interface)
                super().on_start(worker_group, backend_config)

        return NodeBackend


def choose_interface() -> None:
    """Set this process's interface from its node's address."""
    addresses = {name: [entry.address for entry in entries] for name, entries in psutil.net_if_addrs().items()}
    set_interface(interface_of(ray.util.get_node_ip_address(), addresses), os.environ)


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
