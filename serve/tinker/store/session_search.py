"""Finds sessions by what their clients said about them, and by how they ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, false, func, or_, select
from sqlalchemy.orm import Session

from tandem.serve.store.database import Database, position
from tandem.serve.store.tables.tinker import RunCheckpointRow, RunRow, SessionRow
from tandem.serve.tinker.store.checkpoints import are_there

HEARD_OF = timedelta(minutes=1)
"""A client sends a heartbeat every ten seconds; one that was silent for longer isn't known to run."""
ACTIVE, FINISHED = "active", "client_finished"


@dataclass(frozen=True)
class Status:
    """A status that a session may have: ACTIVE, FINISHED, or another, which none has."""

    type: str
    reasons: Sequence[str] | None = None
    """Of FINISHED: those that fit; None for all."""


@dataclass(frozen=True)
class SessionQuery:
    session_id: str | None = None
    display_name: str | None = None
    """Words that must all occur in the name, in any case. With `session_id`, either one has to fit."""
    projects: Sequence[str] | None = None
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    statuses: Sequence[Status] | None = None
    after: str | None = None
    """The session before the first one of the page."""


@dataclass(frozen=True)
class FoundSession:
    row: SessionRow
    project: str
    is_active: bool
    num_checkpoints: int
    checkpoint_bytes: int


class SessionSearch:
    """For a caller, sessions of other entities don't exist."""

    def __init__(self, database: Database, project: str):
        """`project` is that of sessions that name none."""
        self._database, self._project = database, project

    def find(self, entity: str, query: SessionQuery, limit: int) -> list[FoundSession]:
        """Return sessions, the newest first. Raises UnknownCursorError."""
        now = self._database.now()
        with self._database.read() as session:
            wanted = [SessionRow.entity == entity, *self._wanted(query, now)]
            if query.after is not None:
                before = position(session, SessionRow, query.after, SessionRow.entity == entity)
                wanted.append(SessionRow.number < before)
            rows = session.scalars(
                select(SessionRow).where(*wanted).order_by(SessionRow.number.desc()).limit(limit)
            ).all()
            sums = _checkpoints(session, [row.id for row in rows], now)
        return [
            FoundSession(row, row.project or self._project, _is_active(row, now), *sums.get(row.id, (0, 0)))
            for row in rows
        ]

    def _wanted(self, query: SessionQuery, now: datetime) -> list[ColumnElement[bool]]:
        wanted = [SessionRow.user_metadata[name].as_string() == value for name, value in query.user_metadata.items()]
        either = []
        if query.session_id is not None:
            either.append(SessionRow.id == query.session_id)
        if query.display_name is not None:
            words = query.display_name.lower().split()
            name = func.lower(SessionRow.display_name)
            either.append(and_(*(name.contains(word, autoescape=True) for word in words)))
        if either:
            wanted.append(or_(*either))
        if query.projects is not None:
            wanted.append(func.coalesce(SessionRow.project, self._project).in_(query.projects))
        if query.statuses is not None:
            wanted.append(or_(*(_has(status, now) for status in query.statuses)))
        return wanted


def _has(status: Status, now: datetime) -> ColumnElement[bool]:
    if status.type == ACTIVE:
        return and_(SessionRow.finished_at.is_(None), SessionRow.heartbeat_at > now - HEARD_OF)
    if status.type != FINISHED:
        return false()  # no session here is cancelled, or failed as a whole
    if status.reasons is None:
        return SessionRow.finished_at.is_not(None)
    return SessionRow.finish_reason.in_(status.reasons)


def _is_active(row: SessionRow, now: datetime) -> bool:
    return row.finished_at is None and row.heartbeat_at > now - HEARD_OF


def _checkpoints(session: Session, ids: Sequence[str], now: datetime) -> dict[str, tuple[int, int]]:
    """Return number and bytes of the checkpoints of each of these sessions that has some."""
    row = RunCheckpointRow
    query = (
        select(RunRow.session_id, func.count(), func.sum(row.num_bytes))
        .join(row, row.run_id == RunRow.id)
        .where(RunRow.session_id.in_(ids), *are_there(now))
        .group_by(RunRow.session_id)
    )
    return {session_id: (count, int(size)) for session_id, count, size in session.execute(query)}
