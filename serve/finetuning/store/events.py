"""Changes of a fine-tuning job by events."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from tandem.serve.finetuning.store.tables import FineTuningEventRow, FineTuningJobRow

Level = Literal["info", "warn", "error"]


def note(
    session: Session,
    job: FineTuningJobRow,
    message: str,
    now: datetime,
    level: Level = "info",
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Append an event to a job whose row this transaction has locked; with `metrics`, one of type metrics."""
    job.num_events += 1
    session.add(
        FineTuningEventRow(
            job_id=job.id,
            seq=job.num_events,
            level=level,
            type="message" if metrics is None else "metrics",
            message=message,
            data=None if metrics is None else dict(metrics),
            created_at=now,
        )
    )


def end(
    session: Session, job: FineTuningJobRow, status: str, now: datetime, error: Mapping[str, Any] | None = None
) -> None:
    """End a job whose row this transaction has locked, with a last event."""
    job.status, job.error, job.finished_at = status, dict(error) if error else None, now
    job.owner = None
    match status:
        case "succeeded":
            note(session, job, f"New fine-tuned model created: {job.fine_tuned_model}", now)
            note(session, job, "The job has successfully completed", now)
        case "cancelled":
            note(session, job, "The job was cancelled at the user's request.", now)
        case _:
            note(session, job, f"The job failed: {error['message'] if error else ''}", now, "error")
