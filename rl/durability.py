"""Write files that survive crashes and power cuts."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

_UNFINISHED = ".unfinished"


def sync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(file: Path, content: bytes) -> None:
    """Replace a file durably and atomically: after a crash it has the new content or the old."""
    aside = file.with_name(f".{file.name}-{uuid.uuid4().hex}{_UNFINISHED}")
    aside.write_bytes(content)
    sync(aside)
    aside.rename(file)
    sync(file.parent)


def remove_unfinished(directory: Path) -> None:
    """Remove the remains of interrupted `write_whole` calls. No process may write to the directory meanwhile."""
    for aside in directory.glob(f".*{_UNFINISHED}"):
        aside.unlink(missing_ok=True)
