"""The interface of a node's address, and who may overrule it."""

import os
import subprocess
import sys
from typing import Any

import psutil
import pytest
import ray

from tests.conftest import ROOT
from trainer.runtime.nic import NodeTorchConfig, choose_interface, interface_of, join, listen, prepare, set_interface

ADDRESSES = {
    "lo": ["127.0.0.1", "::1", "00:00:00:00:00:00"],
    "eth1": ["02:42:ac:11:00:02", "10.0.0.12", "fe80::1%eth1"],
    "eth10": ["10.0.0.1", "2001:db8::5"],
}


@pytest.mark.parametrize(
    ("ip", "interface"),
    [
        ("127.0.0.1", "lo"),
        ("10.0.0.1", "eth10"),
        ("10.0.0.12", "eth1"),
        ("fe80::1", "eth1"),
        ("2001:0db8:0::5", "eth10"),
        ("192.0.2.7", None),
    ],
)
def test_the_interface_is_the_one_that_holds_the_address(ip: str, interface: str | None) -> None:
    assert interface_of(ip, ADDRESSES) == interface


@pytest.mark.parametrize("name", ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"])
def test_what_the_user_has_set_stands(name: str) -> None:
    environment = {name: "ib0"}
    set_interface("eth1", environment)
    assert environment == {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "=eth1"} | {name: "ib0"}


def test_an_address_of_no_interface_leaves_the_choice_to_the_libraries() -> None:
    environment: dict[str, str] = {}
    set_interface(None, environment)
    assert environment == {}


def test_the_machine_s_own_loopback_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = next(n for n, held in psutil.net_if_addrs().items() if any(a.address == "127.0.0.1" for a in held))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(os, "environ", environment := {})
    choose_interface()
    assert environment == {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": f"={loopback}"}


RANK = """
import psutil, ray, sys
from trainer.runtime import nic

ray.util.get_node_ip_address = lambda: "127.0.0.1"
nic.choose_interface()
host, port = nic.listen()
nic.join(0, 1, host, port, "gloo", 30.0)
import torch, torch.distributed as dist
total = torch.ones(3)
dist.all_reduce(total)
group = dist.new_group()
dist.barrier(group)
print(sorted({each.laddr.ip for each in psutil.Process().net_connections("inet") if each.status == "LISTEN"}))
print(port in {each.laddr.port for each in psutil.Process().net_connections("inet") if each.status == "LISTEN"})
"""


def test_a_process_group_listens_at_its_nodes_address_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RANK], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines() == ["['127.0.0.1']", "True"]


def test_rank_0_listens_before_the_ranks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Group:
        def __len__(self) -> int:
            return 2

        def execute(self, function: Any) -> None:
            calls.append(function)

        def execute_single(self, rank: int, function: Any) -> tuple[str, int]:
            calls.append((rank, function))
            return "10.0.0.1", 4567

        def execute_single_async(self, rank: int, function: Any, *arguments: object) -> None:
            calls.append((rank, function, *arguments))

    monkeypatch.setattr(ray, "get", lambda futures: calls.append(futures))
    config = NodeTorchConfig(backend="gloo", timeout_s=30)
    config.backend_cls().on_start(Group(), config)
    assert calls == [
        prepare,
        (0, listen),
        (0, join, 0, 2, "10.0.0.1", 4567, "gloo", 30),
        (1, join, 1, 2, "10.0.0.1", 4567, "gloo", 30),
        [None, None],
    ]
