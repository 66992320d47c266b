"""Sessions of clients: open, keep alive, finish and list them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.serve.errors import GoneError, NotFoundError
from tandem.serve.names import quoted
from tandem.serve.store.database import Database
from tandem.serve.store.tables.tinker import SessionRow

UNWRITTEN = timedelta(seconds=5)
"""Heartbeats that follow each other more closely aren't written."""


class Sessions:
    """For a caller, sessions of other entities don't exist."""

    def __init__(self, database: Database):
        self._database = database

    def create(
        self,
        entity: str,
        key_id: str | None,
        tags: Sequence[str] = (),
        user_metadata: Mapping[str, Any] | None = None,
        sdk_version: str = "",
        idempotency_key: str | None = None,
        project: str | None = None,
        display_name: str | None = None,
    ) -> SessionRow:
        """Open a session. A repeat with the same idempotency key returns the session of the first request."""
        now = self._database.now()
        row = SessionRow(
            id=str(uuid.uuid4()),
            entity=entity,
            key_id=key_id,
            idempotency_key=idempotency_key,
            tags=list(tags),
            user_metadata=None if user_metadata is None else dict(user_metadata),
            sdk_version=sdk_version[:128],
            project=project,
            display_name=display_name,
            created_at=now,
            heartbeat_at=now,
        )
        try:
            with self._database.write() as session:
                session.add(row)
            return row
        except IntegrityError:
            same = SessionRow.entity == entity, SessionRow.idempotency_key == idempotency_key
            with self._database.read() as session:
                return session.scalars(select(SessionRow).where(*same)).one()

    def get(self, entity: str, session_id: str) -> SessionRow:
        """Return a session. Raises NotFoundError."""
        with self._database.read() as session:
            return find_session(session, entity, session_id)

    def heartbeat(self, entity: str, session_id: str) -> None:
        """Record that the client lives. Raises NotFoundError, and GoneError if the session is finished."""
        now = self._database.now()
        if now - self._living(self.get(entity, session_id)).heartbeat_at < UNWRITTEN:
            return
        with self._database.write() as session:
            self._living(find_session(session, entity, session_id, lock=True)).heartbeat_at = now

    def finish(self, entity: str, session_id: str, reason: str = "success", detail: str | None = None) -> None:
        """Record that the client has ended, and what it said. Its runs stay. A repeat changes nothing.

        Raises NotFoundError.
        """
        with self._database.write() as session:
            row = find_session(session, entity, session_id, lock=True)
            if row.finished_at is None:
                row.finished_at, row.finish_reason, row.finish_detail = self._database.now(), reason, detail

    def page(self, entity: str, limit: int, offset: int = 0) -> tuple[Sequence[SessionRow], int]:
        """Return sessions, the newest first, and how many there are."""
        query = select(SessionRow).where(SessionRow.entity == entity).order_by(SessionRow.number.desc())
        count = select(func.count()).select_from(SessionRow).where(SessionRow.entity == entity)
        with self._database.read() as session:
            return session.scalars(query.limit(limit).offset(offset)).all(), session.scalar(count) or 0

    @staticmethod
    def _living(row: SessionRow) -> SessionRow:
        if row.finished_at is not None:
            raise GoneError(
                f"Session {row.id} was finished at {row.finished_at:%Y-%m-%d %H:%M:%S} UTC. Create a new session.",
                "session_finished",
                "session_id",
            )
        return row


def find_session(session: Session, entity: str, session_id: str, lock: bool = False) -> SessionRow:
    """Return a session of the entity. Raises NotFoundError."""
    query = select(SessionRow).where(SessionRow.id == session_id, SessionRow.entity == entity)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFoundError(
            f"There is no session {quoted(session_id)}: the id is wrong, or it belongs to another entity. Create a "
            "session first.",
            "session_not_found",
            "session_id",
        )
    return row
