"""The meeting place of learners on several nodes, and the network that they use."""

import os
import socket
import threading
from datetime import timedelta
from types import SimpleNamespace

import psutil
import pytest
import ray

from tandem.cluster.learners.rendezvous import hold_meeting_place, init_method, interface_of, meet

IP_LOCAL_PORT_RANGE = 51  # Linux 6.3: the range of ports that the kernel may assign to a socket

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
        ("127.0.0.3", "lo"),  # on Linux, lo has all of 127.0.0.0/8
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


@pytest.fixture(params=["127.0.0.1", "::1"])
def held(request, monkeypatch):
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: request.param)
    with hold_meeting_place() as held:
        yield held


@pytest.mark.parametrize("held", ["127.0.0.1"], indirect=True)  # the socket option for the range exists only for IPv4
def test_the_port_of_a_meeting_stays_reserved_until_the_ranks_meet(held):
    """The kernel doesn't assign the port to another socket, even if no other port is free."""
    host, port = held.getsockname()
    for reuse in (0, 1):
        for wanted in (host, ""):
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
                try:
                    other.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, (port | port << 16).to_bytes(4, "little"))
                except OSError:
                    pytest.skip("this kernel can't narrow the range of ports for one socket")
                with pytest.raises(OSError, match="in use"):
                    other.bind((wanted, 0))


def test_ranks_meet_on_that_address_only(held):
    address, (host, port) = init_method(held), held.getsockname()[:2]
    assert address == {"127.0.0.1": f"tcp://127.0.0.1:{port}", "::1": f"tcp://[::1]:{port}"}[host]
    stores, timeout = {}, timedelta(seconds=120)

    def join(rank, held):
        stores[rank] = meet(address, 2, timeout, held)

    other = threading.Thread(target=join, args=(1, None))
    other.start()
    join(0, held)
    other.join()
    stores[0].set("said by rank", "0")
    assert stores[1].get("said by rank") == b"0"
    own = psutil.Process(os.getpid()).net_connections("tcp")
    assert [c.laddr.ip for c in own if c.laddr.port == port and c.status == psutil.CONN_LISTEN] == [host]


def test_a_workers_own_program_may_take_the_port(held):
    with socket.socket(held.family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # torch.distributed's server sets it, too
        if held.family == socket.AF_INET6:  # else an IPv4 socket with the same port would conflict
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(("", held.getsockname()[1]))
        server.listen()
        socket.create_connection(held.getsockname()[:2], timeout=5).close()
