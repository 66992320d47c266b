"""The meeting place of a torch.distributed group, the network that it uses, and the loss of a rank."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tandem.cluster.errors import PeerLostError
from tandem.cluster.processes.accelerator_failures import connection_fault
from tandem.cluster.processes.held_ports import hold_port

if TYPE_CHECKING:
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined]

SOCKET_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def hold_meeting_place() -> socket.socket:
    """Hold a port on this node, on the address by which the cluster's other nodes reach it. For a Ray actor."""
    import ray

    return hold_port(ray.util.get_node_ip_address())


def init_method(held: socket.socket) -> str:
    """Return the address of a socket as torch.distributed takes it: `tcp://HOST:PORT`."""
    host, port = held.getsockname()[:2]
    return f"tcp://[{host}]:{port}" if held.family == socket.AF_INET6 else f"tcp://{host}:{port}"


def meet(address: str, world_size: int, timeout: timedelta, held: socket.socket | None) -> TCPStore:
    """Return the store through which the ranks of a group find each other, for `init_process_group(store=...)`.

    `address` is the `init_method` of the socket that rank 0 holds. Only rank 0 passes the socket. The store listens on
    it, so on that address only; torch.distributed by itself would listen on all interfaces.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch doesn't declare it as exported

    place = urlsplit(address)
    assert place.hostname and place.port, address
    listening = None
    if held is not None:
        held.listen()
        listening = held.detach()  # the store closes it
    return TCPStore(
        place.hostname, place.port, world_size, held is not None, timeout=timeout, master_listen_fd=listening
    )


def talk_over_rays_network() -> None:
    """Make torch.distributed in this process use the interface that Ray uses, unless the environment names one.

    By default, gloo listens on the address of the machine's name. On Debian and Ubuntu that is a loopback address,
    which other nodes can't reach.
    """
    import ray

    interface = interface_of(ray.util.get_node_ip_address())
    for variable in SOCKET_INTERFACES:
        if interface is not None:
            os.environ.setdefault(variable, interface)


def interface_of(address: str) -> str | None:
    """Return the name of this machine's network interface that has the address or whose network contains it."""
    import psutil

    wanted, nearby = ipaddress.ip_address(address), None
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            own = entry.address.partition("%")[0]  # a link-local one has its interface behind it
            if ipaddress.ip_address(own) == wanted:
                return name
            if entry.family == socket.AF_INET and entry.netmask:
                if wanted in ipaddress.ip_network(f"{own}/{entry.netmask}", strict=False):
                    nearby = name
    return nearby


@contextmanager
def peers_connected() -> Iterator[None]:
    """Raise PeerLostError in place of the errors that torch.distributed raises when a rank is lost."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        # NCCL's errors have a type of their own. Gloo's are recognised by the source file in their message.
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            raise PeerLostError(f"the connection to another learner broke: {connection_fault(error)}") from error
        raise
