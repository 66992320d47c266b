"""The port of a service, held before anything is started."""

from __future__ import annotations

import errno
import socket

from tandem.cli.startup import StartError
from tandem.cluster.config import HttpConfig
from tandem.cluster.processes.held_ports import HeldPort, holder_of

OTHER_PORT = "choose another port: http.port in the configuration, or TANDEM_HTTP__PORT"


def hold(http: HttpConfig) -> HeldPort:
    """Hold the configured port until it is closed, so that no other service gets it. Raises StartError."""
    try:
        return HeldPort(http.host, http.port)
    except OSError as error:
        raise StartError(_sentence(http, error)) from None


def hold_any(http: HttpConfig) -> HeldPort:
    """Hold the configured port, or any free one if it is taken. Raises StartError."""
    try:
        return HeldPort(http.host, http.port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise StartError(_sentence(http, error)) from None
    return HeldPort(http.host)


def _sentence(http: HttpConfig, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"http.host {http.host} is no address and no name that this machine can resolve ({error.strerror})."
    match error.errno:
        case errno.EADDRINUSE:
            holder = holder_of(http.port) or "another program"
            return f"Port {http.port} of {http.host} is taken by {holder}. Stop it, or {OTHER_PORT}."
        case errno.EACCES:
            return f"Port {http.port} needs more rights than this user has: {OTHER_PORT} to one from 1024 on."
        case errno.EADDRNOTAVAIL:
            return f"http.host {http.host} isn't an address of this machine. 127.0.0.1 and 0.0.0.0 always are."
    return f"Port {http.port} of {http.host} can't be used: {error.strerror}. Or {OTHER_PORT}."
