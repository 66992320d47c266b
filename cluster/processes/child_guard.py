"""A small process that ends another's children when it dies, however it dies.

An engine replica that is killed leaves its vLLM core behind, with all its memory, and for ever if the core is stopped.
The guard waits for the end of a pipe that only the replica holds open. Started as a script, it needs only the standard
library: it takes a few megabytes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys


class ChildGuard:
    """Children named to `watch` don't outlive this process."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", __file__]
        # In a session of its own, so that what ends this process's group doesn't end the guard first.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self._watched: set[int] = set()

    def watch(self, pid: int) -> None:
        """May be called again for the same child, and from any thread."""
        if pid not in self._watched:
            self._watched.add(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(self._process.stdin.fileno(), f"{pid}\n".encode())

    def close(self) -> None:
        """Ends the guard, and what is left of the watched children."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(timeout=10)


def guard() -> None:
    """Reads process ids until the pipe ends; then kills those processes. A pidfd never means a later namesake."""
    watched = []
    for line in sys.stdin:
        with contextlib.suppress(ProcessLookupError):
            watched.append(os.pidfd_open(int(line)))
    for descriptor in watched:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)


if __name__ == "__main__":
    guard()
