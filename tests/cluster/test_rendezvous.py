"""Over which network the learners of several nodes meet."""

import socket
from types import SimpleNamespace

import psutil
import pytest

from tandem.cluster.rendezvous import interface_of

ADDRESSES = {
    "lo": [(socket.AF_INET, "127.0.0.1", "255.0.0.0"), (socket.AF_INET6, "::1", None)],
    "docker0": [(socket.AF_INET, "172.17.0.1", "255.255.0.0")],
    "eth0": [(socket.AF_PACKET, "02:42:ac:11:00:02", None), (socket.AF_INET, "10.0.3.7", "255.255.255.0")],
    "eth1": [(socket.AF_INET, "10.0.3.8", "255.255.255.0"), (socket.AF_INET6, "fe80::1%eth1", "ffff:ffff::")],
}


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        ("10.0.3.7", "eth0"),
        ("10.0.3.8", "eth1"),
        ("127.0.0.1", "lo"),
        ("127.0.0.3", "lo"),  # Linux answers all of 127.0.0.0/8 there
        ("::1", "lo"),
        ("fe80::1", "eth1"),
        ("192.168.1.1", None),
    ],
)
def test_the_interface_that_has_the_nodes_address(monkeypatch, address, interface):
    entries = {
        name: [SimpleNamespace(family=family, address=own, netmask=mask) for family, own, mask in of_interface]
        for name, of_interface in ADDRESSES.items()
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: entries)
    assert interface_of(address) == interface


def test_this_machine_has_a_loopback_interface():
    assert interface_of("127.0.0.1").startswith("lo")
