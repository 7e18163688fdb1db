"""The interface of a node's address, and who may overrule it."""

import os
from typing import Any

import psutil
import pytest
import ray
from ray.train.torch import TorchConfig

from trainer.runtime.nic import NodeTorchConfig, choose_interface, interface_of, set_interface

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


def test_every_worker_chooses_before_the_process_group_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Group:
        def execute(self, function: Any) -> None:
            calls.append(function)

    config = NodeTorchConfig(backend="gloo")
    base = TorchConfig().backend_cls
    monkeypatch.setattr(base, "on_start", lambda _self, _group, given: calls.append(given))
    config.backend_cls().on_start(Group(), config)
    assert calls == [choose_interface, config]
