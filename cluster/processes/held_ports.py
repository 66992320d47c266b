"""A port chosen now for what will listen on it later."""

from __future__ import annotations

import socket


def hold_port(host: str, port: int = 0) -> socket.socket:
    """A TCP socket with a port of `host`, any free one by default, which keeps the port while it is open.

    A port that is only looked up may be anyone's connection by the time it is used. The kernel gives this one to nobody
    by itself; a server that asks for it by number gets it, as long as this socket doesn't listen and both have set
    SO_REUSEADDR, as servers do (torch.distributed's and Ray Serve's among them).
    Raises OSError when `port` is taken.
    """
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
    except OSError:
        held.close()
        raise
    return held
