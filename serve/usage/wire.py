"""Bodies of the ledger's responses."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from tandem.serve.api.wire.paging import Listed
from tandem.serve.api.wire.responses import JobState
from tandem.serve.store.ledger.amounts import Amounts


class UsageAmounts(BaseModel):
    """What was used, and what it costs at the prices of its time."""

    requests: int
    """Prompts that were completed."""
    prompt_tokens: int
    cached_prompt_tokens: int
    """Of the prompt tokens, those that the engine's prefix cache had."""
    sampled_tokens: int
    scored_tokens: int
    """Tokens whose logprobs learners computed before a job's first step."""
    engine_scored_tokens: int
    """The same, computed by engines."""
    trained_tokens: int
    """Tokens of packed rows that gradient steps went through."""
    seconds: float
    """Wall time of training jobs, from their claim to their end."""
    learner_seconds: float
    engine_seconds: float
    cpu_seconds: float
    costs: dict[str, float]
    """By currency. Empty where nothing has a price."""


class UsageItem(UsageAmounts, Listed):
    """The amounts of one group. Fields that the list isn't grouped by are null."""

    base_model: str | None = None
    day: str | None = None
    """In UTC."""
    hour: str | None = None
    job: str | None = None
    """The id of a training job, or of the fine-tuning job that sampled; empty for other completions."""
    key: str | None = None
    """The id of an API key; empty for work that no key asked for."""
    key_name: str | None = None
    model: str | None = None
    """The id of a model, or the name of a base model."""
    model_name: str | None = None
    phase: str | None = None
    project: str | None = None
    """Empty for base models."""
    version: str | None = None
    """model:stepN; -1 for amounts of days that are long past."""


class UsagePage(BaseModel):
    """Part of a list of groups, the most expensive first within an hour or a day. While `has_more`, request the next
    part with `after=last_id`."""

    object: Literal["list"] = "list"
    data: list[UsageItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
    begin: datetime
    end: datetime
    total: UsageAmounts
    """Of all groups."""


class PhaseTotal(BaseModel):
    """The sum of one phase of a job, over all attempts."""

    name: str
    seconds: float
    learner_seconds: float
    engine_seconds: float
    cpu_seconds: float
    trained_tokens: int
    scored_tokens: int
    engine_scored_tokens: int


class JobPhase(Listed):
    """A stretch of a job's time in one phase."""

    name: str
    reason: str | None
    attempt: int | None
    """Null for the time between attempts."""
    began_at: datetime
    ended_at: datetime
    seconds: float
    """Fewer than the stretch spans if it stands for many short phases of this name."""
    is_running: bool
    learner_seconds: float
    cpu_seconds: float
    trained_tokens: int
    scored_tokens: int
    engine_scored_tokens: int


class JobPhases(BaseModel):
    """Where the time of a job went, from its acceptance to its end or now."""

    object: Literal["list"] = "list"
    data: list[JobPhase]
    """In order. Together they cover the whole time."""
    first_id: str | None
    last_id: str | None
    has_more: bool
    job_id: str
    state: JobState
    accepted_at: datetime
    ended_at: datetime | None
    seconds: float
    """Wall time so far."""
    idle_seconds: float
    totals: list[PhaseTotal]
    """By phase, the longest first."""
    costs: dict[str, float]


class ActivityBin(BaseModel):
    """How a stretch of time was spent, in seconds."""

    began_at: datetime
    ended_at: datetime
    both_work: float
    """Rollouts were sampled while the learner trained."""
    learner_works: float
    """Rollouts waited for the learner."""
    rollouts_run: float
    """The learner waited for rollouts."""
    job_waits: float
    """A job was queued, prepared or published, and neither worked."""
    idle: float


class Activity(BaseModel):
    """When learner and rollouts of models worked, and when they waited for each other."""

    begin: datetime
    end: datetime
    models: list[str]
    """The ids of the models."""
    total: ActivityBin
    bins: list[ActivityBin]


def amounts_view(amounts: Amounts, costs: dict[str, float]) -> UsageAmounts:
    return UsageAmounts(**vars(amounts), costs=costs)
