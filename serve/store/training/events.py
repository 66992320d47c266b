"""Changes of a job by events. Every change goes through `record` and `end`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tandem.serve.store.tables.training import EventRow, JobRow

CANCELLED_MESSAGE = "The job was cancelled at the user's request."


def record(session: Session, job: JobRow, type: str, data: Mapping[str, Any], now: datetime) -> None:
    """Append an event to a job whose row this transaction has locked."""
    job.num_events += 1
    if type == "gradient_step":
        job.num_gradient_steps += 1
    session.add(EventRow(job_id=job.id, seq=job.num_events, type=type, data=dict(data), created_at=now))


def noted_events(session: Session, job_ids: Sequence[str]) -> Sequence[EventRow]:
    """Return the events that say what trains and what doesn't: training_started and the warnings, in order."""
    query = select(EventRow).where(EventRow.job_id.in_(job_ids), EventRow.type.in_(("training_started", "warning")))
    return session.scalars(query.order_by(EventRow.job_id, EventRow.seq)).all()


def end(
    session: Session,
    job: JobRow,
    state: str,
    now: datetime,
    error: str | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """End a job whose row this transaction has locked, with a last event. `about`: parts of the error."""
    if error is None:
        record(session, job, "training_ended", {}, now)
    else:
        record(session, job, "training_failed", {"error_message": error, **(about or {})}, now)
    job.state, job.error, job.ended_at = state, error, now
    job.owner = job.waiting_for = None
