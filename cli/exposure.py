"""The address that the service listens on: its URL, and whether other machines reach it."""

from __future__ import annotations

import ipaddress
import socket

from tandem.cluster.config import HttpConfig

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_local(host: str) -> bool:
    """True if only this machine reaches `host`, an address or a name. A name that can't be resolved isn't local."""
    return all(_is_loopback(address) for address in _addresses(host))


def url(http: HttpConfig) -> str:
    """Return the URL for this machine. A service that listens on all interfaces also listens on the loopback one."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    return f"http://[{host}]:{http.port}" if ":" in host else f"http://{host}:{http.port}"


def _addresses(host: str) -> list[Address]:
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return [ipaddress.ip_address("::")]
    return [ipaddress.ip_address(str(address[0])) for *_, address in found]


def _is_loopback(address: Address) -> bool:
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return (mapped or address).is_loopback
