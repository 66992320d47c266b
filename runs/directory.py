"""A run's directory: everything that a run needs to resume after it was killed at any moment.

state.json           the run's id, its task, its model, and the batch that is being posted
metrics.jsonl        finished training and evaluation (ledger.py)
batches/000012.*     a batch that was rolled out, until its job has ended
tensorboard/, reward.png
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
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
    """The model when the run started."""

    id: str
    name: str
    start_version: int
    """The version that batch 0 is trained from."""


class Posting(_State):
    """A batch whose job may have been posted, so that its request can't change any more."""

    batch: int
    attempt: int
    """The number of its jobs that have failed."""
    experimental_config: dict[str, Any]


class RunState(_State):
    format: Literal[1] = 1
    run_id: str
    task: dict[str, Any]
    """The task file that the run used last."""
    model: RunModel | None = None
    posting: Posting | None = None
    key_id: str | None = None
    """The id of the API key that was created for the run, to be revoked if the run is killed."""


@dataclass(frozen=True)
class StoredBatch:
    """A batch that was rolled out, as stored on disk."""

    index: int
    groups_zstd: bytes
    """The JSON list of its trajectory groups as a zstd frame."""
    metrics: dict[str, float]
    oldest_version: int
    """The oldest policy version that sampled any of its turns."""


class RunDirectory:
    """with RunDirectory(path) as directory: ...

    Only one process may use it at a time. Entering raises RunDirectoryError if another one does, or if the contents
    can't be read.
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
                f"Another `tandem train` uses {self.path}. Wait for it, stop it, or name another output.directory."
            ) from None
        except OSError as error:
            raise RunDirectoryError(f"The run's directory {self.path} can't be used: {error}.") from error
        try:
            for directory in (self.path, self._batches):
                remove_unfinished(directory)
            self.saved_state = self._load_state()
            self.ledger = Ledger(self.path / "metrics.jsonl")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    # State

    @property
    def state(self) -> RunState:
        assert self.saved_state is not None, "the run hasn't begun"
        return self.saved_state

    @property
    def model(self) -> RunModel:
        assert self.state.model is not None, "the run hasn't registered its model"
        return self.state.model

    def begin(self, task: dict[str, Any]) -> RunState:
        """Save and return the state of a new run."""
        self._save(RunState(run_id=str(uuid.uuid4()), task=task))
        return self.state

    def update(self, **changes: Any) -> None:
        """Change fields of the state durably."""
        self._save(self.state.model_copy(update=changes))

    def _load_state(self) -> RunState | None:
        file = self.path / "state.json"
        if not file.exists():
            if (self.path / "metrics.jsonl").exists():
                raise RunDirectoryError(
                    f"{self.path} has metrics but no state.json, so they belong to an unknown run. Restore "
                    "state.json, or name another output.directory."
                )
            return None
        try:
            return RunState.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise RunDirectoryError(
                f"This release can't read the run's state in {file} ({error.errors()[0]['msg']}). Resume with the "
                "release that wrote it, or name another output.directory."
            ) from None

    def _save(self, state: RunState) -> None:
        write_whole(self.path / "state.json", state.model_dump_json(indent=2).encode())
        self.saved_state = state

    # Batches

    def store_batch(
        self, index: int, groups: Sequence[TrajectoryGroup], metrics: dict[str, float], oldest_version: int
    ) -> None:
        """Store a batch durably and as a whole."""
        about = {"metrics": metrics, "oldest_version": oldest_version}
        write_whole(self._file(index, "json"), json.dumps(about, allow_nan=False).encode())
        # The groups are written last: if they exist, the batch is complete.
        content = b"[" + b",".join(group.model_dump_json(exclude_unset=True).encode() for group in groups) + b"]"
        write_whole(self._file(index, "groups.json.zst"), zstandard.ZstdCompressor().compress(content))

    def has_batch(self, index: int) -> bool:
        return self._file(index, "groups.json.zst").exists()

    def stored_batch(self, index: int) -> StoredBatch:
        """Return a batch that is stored. Raise RunDirectoryError if its files are damaged."""
        try:
            about = json.loads(self._file(index, "json").read_bytes())
            groups = self._file(index, "groups.json.zst").read_bytes()
            if not zstandard.ZstdDecompressor().decompressobj().decompress(groups).endswith(b"]"):
                raise ValueError("its groups are cut off")
            return StoredBatch(index, groups, dict(about["metrics"]), int(about["oldest_version"]))
        except (OSError, ValueError, KeyError, TypeError, zstandard.ZstdError) as error:
            raise RunDirectoryError(f"Batch {index} in {self._batches} can't be read ({error}).") from error

    def replace_groups(self, index: int, groups_zstd: bytes) -> None:
        """Replace the groups of a stored batch by repaired ones."""
        write_whole(self._file(index, "groups.json.zst"), groups_zstd)

    def set_aside(self, index: int) -> Path:
        """Keep a batch under another name, so that it is rolled out again. Return the path of its groups."""
        number = next(n for n in itertools.count(1) if not self._file(index, f"aside{n}.groups.json.zst").exists())
        for suffix in ("groups.json.zst", "json"):
            with suppress(FileNotFoundError):
                self._file(index, suffix).rename(self._file(index, f"aside{number}.{suffix}"))
        return self._file(index, f"aside{number}.groups.json.zst")

    def drop_batch(self, index: int) -> None:
        """Remove a batch if it is stored."""
        for suffix in ("groups.json.zst", "json"):
            self._file(index, suffix).unlink(missing_ok=True)

    def _file(self, index: int, suffix: str) -> Path:
        return self._batches / f"{index:06d}.{suffix}"
