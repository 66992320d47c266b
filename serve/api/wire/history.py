"""Response bodies of the curves of a model."""

from __future__ import annotations

from datetime import datetime

from tandem.serve.api.wire.paging import Listed, Page

MinMeanMax = tuple[float, float, float]


class HistoryPoint(Listed):
    """One version, or several neighbours together."""

    step: int
    """The version; the last of several."""
    first_step: int
    """The first of several."""
    num_versions: int
    created_at: datetime
    """Of the last version."""
    job_id: str | None
    """The job that made the last version; null for one that was imported or forked."""
    kind: str | None
    """The kind of that job."""
    metrics: dict[str, MinMeanMax]
    """Minimum, mean and maximum over the versions that have the metric; three times the same for one version."""


class ModelHistory(Page[HistoryPoint]):
    model_id: str
    metrics: list[str]
    """The names of all metrics that the versions of this answer have, chosen or not."""
    limits: dict[str, float]
    """Metrics with a value above which the service takes sampler and learner for different."""


class Evaluation(Listed):
    """The metrics of trajectories that were logged and not trained."""

    split: str
    step: int
    """The version that they belong to: the one that they name, else the newest at their time."""
    metrics: dict[str, float]
    created_at: datetime
