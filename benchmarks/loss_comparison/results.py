"""The store of results: one complete file per run, found by the fingerprint of its request."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loss_comparison.settings import RunRequest


class Results:
    """The runs of a directory. File names end in the request's fingerprint, so changed settings have other files."""

    def __init__(self, directory: Path, made_by: Mapping[str, str] | None = None) -> None:
        """`made_by` (commit, date) is added to each result that is stored."""
        self.directory, self._made_by = directory, dict(made_by or {})

    def path(self, request: RunRequest) -> Path:
        return self.directory / f"{request.label}.{request.fingerprint}.json"

    def get(self, request: RunRequest) -> dict[str, Any] | None:
        """Return the result of a run; None if there is none. Raise ValueError for a file with another fingerprint."""
        path = self.path(request)
        if not path.exists():
            return None
        result: dict[str, Any] = json.loads(path.read_bytes())
        if result["fingerprint"] != request.fingerprint:
            raise ValueError(f"{path} holds the result of another request. Remove it, and the run is repeated.")
        return result

    def put(self, request: RunRequest, result: dict[str, Any]) -> None:
        write_atomically(self.path(request), json.dumps({**result, "made_by": self._made_by}).encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write the file completely or not at all."""
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
