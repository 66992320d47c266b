"""A small process that kills another process's children when that process dies, however it dies.

Without it, a killed engine replica would leave its vLLM core behind with all its memory. The guard waits for the end of
a pipe that only the replica holds open. It runs as a script with the standard library alone, in a few megabytes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys


class ChildGuard:
    """Children passed to `watch` don't outlive this process."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", __file__]
        # In a session of its own, so that a signal to this process's group doesn't end the guard first.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        self._watched: set[int] = set()

    def watch(self, pid: int) -> None:
        """Add a child. Repeated calls are harmless; any thread may call."""
        if pid not in self._watched:
            self._watched.add(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(self._pipe.fileno(), f"{pid}\n".encode())

    def close(self) -> None:
        """End the guard and any watched children that are left."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        self._process.wait(timeout=10)


def guard() -> None:
    """Read process ids until the pipe ends, then kill these processes; a pidfd never refers to a reused id."""
    watched = []
    for line in sys.stdin:
        with contextlib.suppress(ProcessLookupError):
            watched.append(os.pidfd_open(int(line)))
    for descriptor in watched:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)


if __name__ == "__main__":
    guard()
