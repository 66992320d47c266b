"""The files to which Ray writes the errors of its processes on this node."""

from __future__ import annotations

import os
from pathlib import Path

import ray


def logs_directory() -> Path | None:
    """Return the directory with the logs of the Ray that this process is connected to; None if it isn't."""
    node = ray._private.worker.global_worker.node
    return Path(node.get_logs_dir_path()) if node else None


def error_log(pid: int | None = None) -> Path | None:
    """Return the file with the errors of a worker process of this node, by default this one's; None if there is none.

    With RAY_ROTATION_MAX_BYTES, a log reaches its file through a pipe in the process itself, so the last lines of a
    crash may be missing.
    """
    directory = logs_directory()
    return next(directory.glob(f"worker-*-{pid or os.getpid()}.err"), None) if directory else None
