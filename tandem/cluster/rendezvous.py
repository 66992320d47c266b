"""Where the processes of a torch.distributed group meet, and over which network they talk."""

from __future__ import annotations

import ipaddress
import os
import socket

SOCKET_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def free_address() -> str:
    """An init_method on this node, as the cluster's other nodes reach it: `tcp://HOST:PORT`, free a moment ago.

    For the process that will be rank 0, in a Ray actor: its node's address is the one that Ray knows.
    """
    import ray

    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"tcp://[{host}]:{port}" if family == socket.AF_INET6 else f"tcp://{host}:{port}"


def talk_over_rays_network() -> None:
    """Has torch.distributed, in this process, use the interface that Ray uses, unless the environment names one.

    By itself, gloo listens where the machine's name leads. On Debian and its kin that is a loopback address, so no
    process of another node would reach it.
    """
    import ray

    interface = interface_of(ray.util.get_node_ip_address())
    for variable in SOCKET_INTERFACES:
        if interface is not None:
            os.environ.setdefault(variable, interface)


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface that has the address, or whose network it is in; else None."""
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
