"""metrics.jsonl: one line per trained version and per evaluation.

It is also the run's only record of progress: the next batch to train follows its last line of training. So a crash
can't leave two records that disagree.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from tandem.runs.errors import RunDirectoryError

Kind = Literal["training", "evaluation"]
Row = dict[str, Any]
"""`kind`, `version`, `time`, and metrics by name; a row of training also has `batch` and `job`."""


class Ledger:
    """Append-only rows, each durable when `append` returns. Opening removes a line that a crash cut off."""

    def __init__(self, path: Path):
        """Raise RunDirectoryError if the file isn't the metrics file of a run."""
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
        """The number of batches whose version is recorded; also the index of the next batch."""
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
                f"{self._path} isn't the metrics file of a run ({error!r}). Restore it, or name another "
                "output.directory."
            ) from error
        if batches != list(range(len(batches))):
            raise RunDirectoryError(
                f"{self._path} has the batches {batches} instead of 0, 1, 2, ... Restore it, or start a new run in "
                "another output.directory."
            )
