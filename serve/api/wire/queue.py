"""Response bodies of a job's place in the queue."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from tandem.serve.api.wire.responses import JobState

Cause = Literal[
    "ended",
    "trains",
    "prepares",
    "cancelling",
    "same_model",
    "jobs_at_once",
    "learners",
    "coordinator",
    "lease",
    "starting",
]
"""Why a job waits, or what it does instead."""


class QueuedBefore(BaseModel):
    """Jobs that begin before this one."""

    same_model: list[str]
    """The open jobs of the same model that were accepted before, in order: they run one at a time."""
    own: list[str]
    """The entity's queued jobs that begin before it, of any model on this base model; the first 100."""
    num_own: int
    num_others: int
    """The number of queued jobs of other entities that begin before it."""


class TrainingJobQueue(BaseModel):
    id: str
    model_id: str
    base_model: str
    state: JobState
    place: int | None
    """1 for the job that begins next. Null for one that isn't queued."""
    waits: bool
    """False for a job that trains or has ended."""
    cause: Cause
    """The kind of reason, as a word that programs can test."""
    reason: str
    """A sentence for people."""
    before: QueuedBefore
    lease_expires_at: datetime | None
    """Of a running job: the time until which its attempt has to show that it lives."""
