"""The metrics of many versions and log entries at once, without the ORM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, or_, select

from tandem.serve.store.database import Database
from tandem.serve.store.policies.models import find_model
from tandem.serve.store.tables.training import JobRow, LogRow, ModelRow, VersionRow


@dataclass(frozen=True)
class VersionPoint:
    """A version of a model, with the job that made it."""

    step: int
    created_at: datetime
    metrics: Mapping[str, float]
    is_retired: bool
    job_id: str | None
    """None for a version that was imported or forked."""
    kind: str | None
    num_gradient_steps: int | None
    job_created_at: datetime | None
    job_started_at: datetime | None


_VERSIONS = select(
    VersionRow.step, VersionRow.created_at, VersionRow.metrics, VersionRow.retired_at.is_not(None)
).where(or_(VersionRow.deleted_at.is_(None), VersionRow.retired_at.is_not(None)))
_JOBS = select(
    JobRow.step, JobRow.id, JobRow.kind, JobRow.num_gradient_steps, JobRow.created_at, JobRow.started_at
).where(JobRow.state == "succeeded")
_NO_JOB = (None, None, None, None, None)


class Curves:
    """For a caller, models of other entities don't exist."""

    def __init__(self, database: Database):
        self._database = database

    def model(self, model_id: str, entity: str) -> ModelRow:
        """Return a model. Raises NotFoundError."""
        with self._database.read() as session:
            return find_model(session, model_id, entity)

    def versions(
        self,
        model_id: str,
        first: int = 0,
        last: int | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[VersionPoint]:
        """Return versions from step `first` to `last`, those that retention deleted too, by step."""
        order = VersionRow.step.desc() if newest_first else VersionRow.step
        query = _VERSIONS.where(VersionRow.model_id == model_id, VersionRow.step >= first).order_by(order).limit(limit)
        if last is not None:
            query = query.where(VersionRow.step <= last)
        with self._database.quick_read() as connection:
            rows = connection.execute(query).all()
            if not rows:
                return []
            lowest, highest = sorted((rows[0].step, rows[-1].step))
            # Not a join: jobs have no index by step, so it would read all jobs of the model once per version.
            of_model = _JOBS.where(JobRow.model_id == model_id, JobRow.step.between(lowest, highest))
            jobs = {step: job for step, *job in connection.execute(of_model)}
        return [VersionPoint(*row, *jobs.get(row.step, _NO_JOB)) for row in rows]

    def evaluations(
        self, model_id: str, without: Sequence[str], limit: int, before: int | None = None
    ) -> list[tuple[LogRow, int]]:
        """Return log entries of other splits than these, the newest first, each with the newest version at its time.

        Those before the entry with number `before`.
        """
        step = (
            select(func.coalesce(func.max(VersionRow.step), 0))
            .where(VersionRow.model_id == model_id, VersionRow.created_at <= LogRow.created_at)
            .scalar_subquery()
        )
        query = select(LogRow, step).where(LogRow.model_id == model_id, LogRow.split.not_in(without))
        if before is not None:
            query = query.where(LogRow.number < before)
        with self._database.read() as session:
            return [(row, at) for row, at in session.execute(query.order_by(LogRow.number.desc()).limit(limit))]
