"""Reserve a port for a server that starts later."""

from __future__ import annotations

import errno
import re
import socket
from contextlib import suppress
from pathlib import Path

import psutil

WILDCARDS = ("0.0.0.0", "::")
_LOCK = "tandem-port"
_HELD = re.compile(rf"@{_LOCK}/(?P<port>\d+)/(?P<host>\S+)")


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


class HeldPort:
    """A port that no other holder and no other server gets while this is open.

        with HeldPort("127.0.0.1", 8000) as held:
            ... start a server on held.port ...

    `hold_port` alone keeps off programs that listen already, but not a second one that holds the port too: Ray Serve
    sets SO_REUSEPORT, so both would listen in the end, and the kernel would divide requests between them. So holders
    also bind a name that only one process of the machine (its network namespace) can have. It ends with the process.
    Raises OSError if the port is taken, isn't allowed, or `host` isn't an address of this machine.
    """

    def __init__(self, host: str, port: int = 0):
        self._socket = hold_port(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._name = socket.socket(socket.AF_UNIX)
        try:
            address = self._socket.getsockname()[0]
            self._name.bind(f"\0{_LOCK}/{self.port}/{address}")
            if any(_overlap(address, other) for other in _other_hosts(self.port, address)):
                raise OSError(errno.EADDRINUSE, "another program that starts a server holds it")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._name.close()
        self._socket.close()

    def __enter__(self) -> HeldPort:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def holder_of(port: int) -> str | None:
    """Return the program that listens on a port of this machine, or holds it, as far as this user can see."""
    with suppress(psutil.Error, OSError):
        servers = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        pids = [c.pid for c in servers if tuple(c.laddr)[1:2] == (port,)]
        names = psutil.net_connections("unix")
        pids += [c.pid for c in names if str(c.laddr).lstrip("\0@").startswith(f"{_LOCK}/{port}/")]
        for pid in filter(None, pids):
            process = psutil.Process(pid)
            command = " ".join(" ".join(process.cmdline()[:3]).split())[:80]
            return f"{command or process.name()} (process {pid})"
    return None


def _other_hosts(port: int, own: str) -> list[str]:
    """Return the addresses for which other processes hold the same port."""
    names = _HELD.finditer(Path("/proc/net/unix").read_text(errors="replace"))
    return [name["host"] for name in names if int(name["port"]) == port and name["host"] != own]


def _overlap(host: str, other: str) -> bool:
    return host in WILDCARDS or other in WILDCARDS
