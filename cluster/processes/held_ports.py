"""Reserve a port for a server that starts later."""

from __future__ import annotations

import socket


def hold_port(host: str, port: int = 0) -> socket.socket:
    """Return a TCP socket that reserves a port of `host`, by default any free one, while it is open.

    The kernel doesn't assign the port to other sockets. A server that binds it by number succeeds, because this socket
    doesn't listen and both set SO_REUSEADDR, as the servers of torch.distributed and Ray Serve do.
    Raises OSError if `port` is taken.
    """
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
    except OSError:
        held.close()
        raise
    return held
