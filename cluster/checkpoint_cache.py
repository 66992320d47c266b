"""A node's cache of checkpoints from an object store, limited to a share of the disk."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DISK_SHARE = 0.2  # of the disk, for all copies together
SPARED_S = 3600.0  # a copy used this recently may be in use, or may not be in the object store yet


def mark_used(copy: Path) -> None:
    """Record that a copy is used now, if it exists."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return


def make_room(directory: Path) -> None:
    """Remove the least recently used copies until the rest fits in its share of the disk.

    Every entry of `directory` must be a copy, complete or not. Copies used in the last hour stay, whatever their size.
    Safe to call from several processes at the same time.
    """
    allowed = DISK_SHARE * shutil.disk_usage(directory).total
    copies = sorted(_copies(directory), key=lambda copy: copy.used_at)
    taken = sum(copy.num_bytes for copy in copies)
    for copy in copies:
        if taken <= allowed or copy.used_at > time.time() - SPARED_S:
            return
        _remove(copy.path)
        taken -= copy.num_bytes


@dataclass(frozen=True)
class _Copy:
    path: Path
    num_bytes: int
    used_at: float


def _copies(directory: Path) -> Iterator[_Copy]:
    for path in directory.iterdir():
        try:
            num_bytes = sum(file.stat().st_size for file in path.iterdir())
            yield _Copy(path, num_bytes, path.stat().st_mtime)
        except (FileNotFoundError, NotADirectoryError):  # another process has just removed or renamed it
            continue


def _remove(copy: Path) -> None:
    """Rename, then remove, so that an incomplete copy never has the name of a copy."""
    aside = copy.with_name(f".{copy.name}-{uuid.uuid4().hex}")
    try:
        copy.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)
