"""Response bodies of the tree of a model's versions."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from tandem.serve.api.wire.paging import Listed
from tandem.serve.api.wire.responses import Checkpoint

VersionState = Literal["live", "retired", "deleted"]


class TreeParent(BaseModel):
    """The version from which a version was trained or forked."""

    model_id: str
    step: int
    model: str | None
    """The name of another model; null for the version's own."""
    exists: bool
    """False if that other model was deleted."""


class TreeFork(BaseModel):
    """A model that begins with the version."""

    model_id: str
    model: str
    deleted: bool


class TreeVersion(BaseModel):
    """One version. Of one whose files are gone, little is known but the job that made it."""

    step: int
    origin: Literal["initial", "job", "run", "import", "fork", "unknown"]
    digest: str | None
    created_at: datetime | None
    job_id: str | None
    job_kind: str | None
    """rl, sft or dpo; others may follow."""
    run_id: str | None
    """The run of the Tinker API that made it."""
    checkpoint_name: str | None
    """The name that the run's client gave it: tinker://{run_id}/sampler_weights/{checkpoint_name}."""
    imported_from: dict[str, Any] | None
    """Of an imported version: what its import recorded."""
    metrics: dict[str, float]
    has_optimizer: bool
    """False if training that starts from this version begins with a new optimizer."""
    kept_at: datetime | None
    is_newest: bool
    """Completions that name no version come from it."""
    is_best: bool
    """No version has a higher reward."""
    forks: list[TreeFork]


class TreeItem(Listed):
    """A version, or a run of versions that follow each other and of which none stands out."""

    first_step: int
    last_step: int
    count: int
    state: VersionState
    reason: str | None
    """Why the versions are gone, as a sentence."""
    parent: TreeParent | None
    """Of the first version. Null for version 0, imported versions, and where it isn't known any more."""
    version: TreeVersion | None
    """Null for a run; `?collapse=false&after={model_id}:{last_step + 1}` lists its versions."""
    lowest_reward: float | None
    highest_reward: float | None


class CheckpointDetails(Checkpoint):
    """A version with the sizes of its files."""

    adapter_bytes: int
    optimizer_bytes: int
