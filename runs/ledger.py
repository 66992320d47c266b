"""metrics.jsonl: one line per trained version and per evaluation. What stands in it has happened.

It is the run's memory too: the next batch to train is the one after its last line of training. So there are no two
records that a crash could leave in disagreement.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from tandem.runs.errors import RunDirectoryError

Kind = Literal["training", "evaluation"]
Row = dict[str, Any]
"""`kind`, `version`, `time`, and metrics by name; a row of training has `batch` and `job` too."""


class Ledger:
    """Append-only rows, each durable when `append` returns. A line that a crash cut off is removed at opening."""

    def __init__(self, path: Path):
        """Raises RunDirectoryError when the file isn't one of a run."""
        self._path = path
        self.rows: list[Row] = []
        if path.exists():
            self._load()
        self._seen = {(row["kind"], row["version"]) for row in self.rows}

    def append(self, row: Row) -> None:
        key = (row["kind"], row["version"])
        assert key not in self._seen, f"{key} is in {self._path} already"
        with self._path.open("ab") as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
        self._seen.add(key)

    def of(self, kind: Kind) -> list[Row]:
        return [row for row in self.rows if row["kind"] == kind]

    def has(self, kind: Kind, version: int) -> bool:
        return (kind, version) in self._seen

    @property
    def num_trained(self) -> int:
        """Batches whose version is made and recorded; also the index of the next one."""
        return len(self.of("training"))

    def _load(self) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        try:
            self.rows = [json.loads(line) for line in whole.splitlines()]
            batches = [row["batch"] for row in self.rows if row["kind"] == "training"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(
                f"{self._path} isn't the metrics file of a run ({error}). Restore it, or name another output.directory."
            ) from error
        if batches != list(range(len(batches))):
            raise RunDirectoryError(
                f"{self._path} has the batches {batches} instead of 0, 1, 2, ... Restore it, or name another "
                "output.directory to begin anew."
            )
