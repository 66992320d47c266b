"""A run's directory: what a run that was killed at any moment needs to go on.

state.json           who the run is, its task, its model, and the batch that is being posted
metrics.jsonl        what has happened (ledger.py)
batches/000012.*     a batch that was rolled out, until its job has ended
tensorboard/, reward.png
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zstandard
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from tandem.rl.durability import remove_unfinished, write_whole
from tandem.rl.trajectories import TrajectoryGroup
from tandem.runs.errors import RunDirectoryError
from tandem.runs.ledger import Ledger


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunModel(_State):
    """The model as it was when the run began."""

    id: str
    name: str
    start_version: int
    """The version that batch 0 is trained from."""


class Posting(_State):
    """A batch whose job may have been posted: its request can't change any more."""

    batch: int
    attempt: int
    """0, or how many of its jobs have failed."""
    experimental_config: dict[str, Any]


class RunState(_State):
    format: Literal[1] = 1
    run_id: str
    task: dict[str, Any]
    """The task file that the run went on with last."""
    model: RunModel | None = None
    posting: Posting | None = None
    key_id: str | None = None
    """Of the API key that was made for the run, to be revoked should the run be killed."""


@dataclass(frozen=True)
class StoredBatch:
    """A batch that was rolled out, as it lies on disk."""

    index: int
    groups_zstd: bytes
    """The JSON list of its trajectory groups, a zstd frame."""
    metrics: dict[str, float]
    oldest_version: int
    """That any of its turns was sampled by."""


class RunDirectory:
    """with RunDirectory(path) as directory: ...

    Nobody else may use it in the meantime. Raises RunDirectoryError when somebody does, or when what is there can't be
    read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._batches = path / "batches"
        self._lock = FileLock(path / "lock")

    def __enter__(self) -> RunDirectory:
        try:
            self._batches.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunDirectoryError(
                f"Another `tandem train` is working in {self.path}. Wait for it, stop it, or name another "
                "output.directory."
            ) from None
        except OSError as error:
            raise RunDirectoryError(f"The run's directory {self.path} can't be used: {error}.") from error
        try:
            for directory in (self.path, self._batches):
                remove_unfinished(directory)
            self.state = self._load_state()
            self.ledger = Ledger(self.path / "metrics.jsonl")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    # State

    def begin(self, task: dict[str, Any]) -> RunState:
        """The state of a new run."""
        self._save(RunState(run_id=str(uuid.uuid4()), task=task))
        return self.state

    def update(self, **changes: Any) -> None:
        """Changes fields of the state, durably."""
        self._save(self.state.model_copy(update=changes))

    def _load_state(self) -> RunState | None:
        file = self.path / "state.json"
        if not file.exists():
            if (self.path / "metrics.jsonl").exists():
                raise RunDirectoryError(
                    f"{self.path} has metrics but no state.json, so it can't be told which run they are of. Restore "
                    "it, or name another output.directory."
                )
            return None
        try:
            state = RunState.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise RunDirectoryError(
                f"{file} isn't the state of a run that this release can read ({error.errors()[0]['msg']}). Go on with "
                "the release that wrote it, or name another output.directory."
            ) from None
        return state

    def _save(self, state: RunState) -> None:
        write_whole(self.path / "state.json", state.model_dump_json(indent=2).encode())
        self.state = state

    # Batches

    def store_batch(
        self, index: int, groups: Sequence[TrajectoryGroup], metrics: dict[str, float], oldest_version: int
    ) -> None:
        """Keeps a batch that was rolled out. It is there, as a whole, once this returns."""
        about = {"metrics": metrics, "oldest_version": oldest_version}
        write_whole(self._file(index, "json"), json.dumps(about, allow_nan=False).encode())
        # The groups come last: where they are, all is.
        content = b"[" + b",".join(group.model_dump_json(exclude_unset=True).encode() for group in groups) + b"]"
        write_whole(self._file(index, "groups.json.zst"), zstandard.ZstdCompressor().compress(content))

    def has_batch(self, index: int) -> bool:
        return self._file(index, "groups.json.zst").exists()

    def stored_batch(self, index: int) -> StoredBatch:
        """One that is there."""
        about = json.loads(self._file(index, "json").read_bytes())
        groups = self._file(index, "groups.json.zst").read_bytes()
        return StoredBatch(index, groups, about["metrics"], about["oldest_version"])

    def drop_batch(self, index: int) -> None:
        """Removes what `store_batch` has kept, if it has."""
        for suffix in ("groups.json.zst", "json"):
            self._file(index, suffix).unlink(missing_ok=True)

    def _file(self, index: int, suffix: str) -> Path:
        return self._batches / f"{index:06d}.{suffix}"
