"""When jobs of models were open and had the learners, and when the models were sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import or_, select

from tandem.serve.store.database import Database
from tandem.serve.store.tables.training import JobRow, ModelRow
from tandem.serve.store.tables.usage import PhaseRow, SamplingRow

Spans = Sequence[tuple[datetime, datetime]]


@dataclass(frozen=True)
class ActivitySpans:
    """Begin and end of each stretch; they may overlap."""

    learner: Spans
    """A job had the learners."""
    sampling: Spans
    """An engine worked on completions."""
    jobs: Spans
    """A job was queued or running."""


class ActivityOfModels:
    def __init__(self, database: Database):
        self._database = database

    def models(self, entity: str, base_model: str | None) -> list[str]:
        """Return the ids of an entity's models, deleted ones too, by their age; only those on a base model if given."""
        query = select(ModelRow.id).where(ModelRow.entity == entity).order_by(ModelRow.number)
        with self._database.read() as session:
            return list(session.scalars(query.where(ModelRow.base_model == base_model) if base_model else query))

    def between(self, model_ids: Sequence[str], begin: datetime, end: datetime, now: datetime) -> ActivitySpans:
        """Return what overlaps with the time between `begin` and `end`."""
        is_inside = JobRow.created_at < end, or_(JobRow.ended_at.is_(None), JobRow.ended_at > begin)
        own = JobRow.model_id.in_(model_ids)
        jobs = select(JobRow.created_at, JobRow.ended_at).where(own, *is_inside)
        learner = (
            select(PhaseRow.began_at, PhaseRow.seconds)
            .join(JobRow, JobRow.id == PhaseRow.job_id)
            .where(own, *is_inside, PhaseRow.learner_seconds > PhaseRow.seconds / 2)
            .where(PhaseRow.began_at < end, PhaseRow.ended_at > begin)
        )
        sampling = select(SamplingRow.began_at, SamplingRow.ended_at).where(
            SamplingRow.model_id.in_(model_ids), SamplingRow.began_at < end, SamplingRow.ended_at > begin
        )
        with self._database.read() as session:
            return ActivitySpans(
                learner=[(began, began + timedelta(seconds=seconds)) for began, seconds in session.execute(learner)],
                sampling=[(began, ended) for began, ended in session.execute(sampling)],
                jobs=[(created, ended or now) for created, ended in session.execute(jobs)],
            )
