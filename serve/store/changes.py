"""The state of all jobs and models in short, from which `serve.changes` finds out what has changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, or_, select

from tandem.serve.store.database import Database
from tandem.serve.store.tables.alerts import AlertRow
from tandem.serve.store.tables.training import ApiKeyRow, EventRow, JobRow, ModelRow, is_open

NUM_RECENT = 200
"""Jobs that are looked at although they have ended: one may begin and end between two looks."""
MAX_IN_QUERY = 500
MAX_EVENTS = 200
"""Events of one job that are reported together. Those before them can be read with the job."""


@dataclass(frozen=True)
class JobMark:
    """The part of a job that changes."""

    number: int
    id: str
    entity: str
    model_id: str
    kind: str
    state: str
    attempt: int
    step: int | None
    num_events: int
    num_gradient_steps: int
    waiting_for: str | None
    cancel_requested: bool

    @property
    def is_open(self) -> bool:
        return self.state in ("queued", "running")


@dataclass(frozen=True)
class ModelMark:
    """The part of a live model that changes."""

    id: str
    entity: str
    next_step: int


@dataclass(frozen=True)
class AlertMark:
    """The part of an entity's alert that changes."""

    id: str
    entity: str
    kind: str
    is_open: bool
    is_acknowledged: bool


@dataclass(frozen=True)
class EventMark:
    """One event of a job, without its data."""

    job_id: str
    seq: int
    type: str


_JOBS = select(
    JobRow.number,
    JobRow.id,
    ModelRow.entity,
    JobRow.model_id,
    JobRow.kind,
    JobRow.state,
    JobRow.attempt,
    JobRow.step,
    JobRow.num_events,
    JobRow.num_gradient_steps,
    JobRow.waiting_for,
    JobRow.cancel_requested,
).join_from(JobRow, ModelRow, ModelRow.id == JobRow.model_id)
_RECENT = _JOBS.order_by(JobRow.number.desc()).limit(NUM_RECENT)
_OPEN = _JOBS.where(is_open())
_MODELS = select(ModelRow.id, ModelRow.entity, ModelRow.next_step).where(ModelRow.deleted_at.is_(None))


_ALERTS = select(
    AlertRow.id, AlertRow.entity, AlertRow.kind, AlertRow.resolved_at.is_(None), AlertRow.acknowledged_at.is_not(None)
).where(AlertRow.entity.is_not(None))


class Changes:
    """Short reads of all entities together. Whoever uses them keeps entities apart."""

    def __init__(self, database: Database):
        self._database = database

    def jobs(self, also: Collection[str] = ()) -> dict[str, JobMark]:
        """Return by id the open jobs, the newest ones, and those with the ids in `also`."""
        with self._database.quick_read() as connection:
            rows: list[Sequence[Any]] = [*connection.execute(_RECENT), *connection.execute(_OPEN)]
            missing = sorted(set(also) - {row[1] for row in rows})
            for first in range(0, len(missing), MAX_IN_QUERY):
                wanted = _JOBS.where(JobRow.id.in_(missing[first : first + MAX_IN_QUERY]))
                rows += connection.execute(wanted)
        return {mark.id: mark for mark in (JobMark(*row) for row in rows)}

    def models(self) -> dict[str, ModelMark]:
        """Return the live models by id."""
        with self._database.quick_read() as connection:
            return {row[0]: ModelMark(*row) for row in connection.execute(_MODELS)}

    def alerts(self, also: Collection[str] = ()) -> dict[str, AlertMark]:
        """Return by id the open alerts of entities, and those with the ids in `also`."""
        with self._database.quick_read() as connection:
            rows: list[Sequence[Any]] = [*connection.execute(_ALERTS.where(AlertRow.resolved_at.is_(None)))]
            missing = sorted(set(also) - {row[0] for row in rows})
            for first in range(0, len(missing), MAX_IN_QUERY):
                rows += connection.execute(_ALERTS.where(AlertRow.id.in_(missing[first : first + MAX_IN_QUERY])))
        return {row[0]: AlertMark(row[0], row[1], row[2], bool(row[3]), bool(row[4])) for row in rows}

    def events(self, after: Mapping[str, int]) -> list[EventMark]:
        """Return the events of each of these jobs after a number, in order; the last MAX_EVENTS of a job with more."""
        found: list[EventMark] = []
        jobs = list(after.items())
        columns = select(EventRow.job_id, EventRow.seq, EventRow.type)
        with self._database.quick_read() as connection:
            for first in range(0, len(jobs), MAX_IN_QUERY // 2):
                some = jobs[first : first + MAX_IN_QUERY // 2]
                newer = or_(*(and_(EventRow.job_id == job, EventRow.seq > seq) for job, seq in some))
                rows = connection.execute(columns.where(newer).order_by(EventRow.job_id, EventRow.seq))
                found += [EventMark(*row) for row in rows]
        newest = {event.job_id: event.seq for event in found}
        return [event for event in found if event.seq > newest[event.job_id] - MAX_EVENTS]

    def revoked(self, key_ids: Collection[str]) -> set[str]:
        """Return which of these keys aren't valid any more."""
        query = select(ApiKeyRow.id).where(ApiKeyRow.id.in_(key_ids), ApiKeyRow.revoked_at.is_(None))
        with self._database.quick_read() as connection:
            return set(key_ids) - set(connection.execute(query).scalars())
