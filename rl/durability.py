"""What was written stays written."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

_UNFINISHED = ".unfinished"


def sync(path: Path) -> None:
    """Makes a file's contents, or a directory's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(file: Path, content: bytes) -> None:
    """Puts a file in place durably: after a crash it has all of the new content, or is as it was."""
    aside = file.with_name(f".{file.name}-{uuid.uuid4().hex}{_UNFINISHED}")
    aside.write_bytes(content)
    sync(aside)
    aside.rename(file)
    sync(file.parent)


def remove_unfinished(directory: Path) -> None:
    """Removes what `write_whole` has left in a directory where it was killed. Nobody may be writing there."""
    for aside in directory.glob(f".*{_UNFINISHED}"):
        aside.unlink(missing_ok=True)
