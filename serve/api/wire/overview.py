"""Response bodies of the overview of models."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from tandem.serve.api.wire.paging import Listed

Activity = Literal["training", "queued", "idle"]


class LastError(BaseModel):
    """The failure of the job of a model that ended last."""

    job_id: str
    message: str
    ended_at: datetime | None


class ModelOverview(Listed):
    """A model and what happens to it."""

    entity: str
    project: str
    name: str
    base_model: str
    created_at: datetime
    step: int
    """The newest version; 0 before the first training."""
    version_created_at: datetime | None
    """Of that version; null for version 0."""
    activity: Activity
    num_queued: int
    """Jobs that wait."""
    metric: Literal["reward", "sft/loss"] | None
    """The metric of `recent`: the loss if no recent version has a reward. Null without either."""
    recent: list[tuple[int, float | None]]
    """Step and value of the newest versions, at most 40, in order of steps."""
    last_error: LastError | None
    """Null if the job that ended last didn't fail."""
