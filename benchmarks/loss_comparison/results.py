"""Where results are kept: one file per run, whole or not there, found again by what the run was asked to be."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loss_comparison.settings import RunRequest


class Results:
    """The runs of a directory. A file's name ends in the fingerprint of its request, so a changed setting has files
    of its own."""

    def __init__(self, directory: Path, made_by: Mapping[str, str] | None = None) -> None:
        """`made_by` (commit, date) is noted in what is put here."""
        self.directory, self._made_by = directory, dict(made_by or {})

    def path(self, request: RunRequest) -> Path:
        return self.directory / f"{request.label}.{request.fingerprint}.json"

    def get(self, request: RunRequest) -> dict[str, Any] | None:
        """The result of a run that has been made. Raises ValueError for a file that says another fingerprint."""
        path = self.path(request)
        if not path.exists():
            return None
        result = json.loads(path.read_bytes())
        if result["fingerprint"] != request.fingerprint:
            raise ValueError(f"{path} holds the result of another request. Remove it, and it is made again.")
        return result

    def put(self, request: RunRequest, result: dict[str, Any]) -> None:
        write_atomically(self.path(request), json.dumps({**result, "made_by": self._made_by}).encode())


def write_atomically(path: Path, data: bytes) -> None:
    """The file appears whole, or stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
