"""Which job answers a request that was sent before."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from tandem.serve.errors import ConflictError
from tandem.serve.store.tables.training import JobRow, is_open


@dataclass(frozen=True)
class Post:
    """A request that offers a job, as far as it tells whether it repeats another one."""

    body_sha256: str
    idempotency_key: str | None = None
    api_key_id: str | None = None
    """The key that sent the request; None for a job of the service itself."""
    repeated_body_s: float = 0
    """Without an idempotency key, the same body is a repeat for this long; 0: never."""


def find_repeated(session: Session, model_id: str, post: Post, now: datetime) -> JobRow | None:
    """Return the job of an earlier request that this one repeats, if any.

    With an idempotency key, that is the job with this key; ConflictError is raised if its body was another one.
    Without a key, it is an open job that the same sender has just posted with the same body: clients that lose an
    answer and send no keys would otherwise leave a job that nobody follows. Call this in the transaction that adds the
    job, after it has locked the model's row; otherwise two equal requests at once could make two jobs.
    """
    if post.idempotency_key is not None:
        return _with_key(session, model_id, post)
    if post.api_key_id is None:
        return None
    query = select(JobRow).where(JobRow.model_id == model_id, JobRow.body_sha256 == post.body_sha256)
    query = query.where(*_repeatable(post.api_key_id, post.repeated_body_s, now))
    return session.scalar(query.order_by(JobRow.number.desc()).limit(1))


def may_repeat(session: Session, api_key_id: str, repeated_body_s: float, now: datetime) -> bool:
    """Return True if a body of this sender, as yet unread, may repeat that of one of its jobs."""
    query = select(JobRow.id).where(*_repeatable(api_key_id, repeated_body_s, now))
    return session.scalar(query.limit(1)) is not None


def _repeatable(api_key_id: str, repeated_body_s: float, now: datetime) -> list[ColumnElement[bool]]:
    return [
        is_open(),
        JobRow.cancel_requested.is_(False),
        JobRow.api_key_id == api_key_id,
        JobRow.idempotency_key.is_(None),
        JobRow.created_at > now - timedelta(seconds=repeated_body_s),
    ]


def _with_key(session: Session, model_id: str, post: Post) -> JobRow | None:
    key = post.idempotency_key
    job = session.scalar(select(JobRow).where(JobRow.model_id == model_id, JobRow.idempotency_key == key))
    if job and job.body_sha256 != post.body_sha256:
        raise ConflictError(
            f"Idempotency-Key {key!r} was used for job {job.id} with another body. "
            "Send the same body to get that job again, or a new key for a new job.",
            "idempotency_key_reused",
            "Idempotency-Key",
        )
    return job
