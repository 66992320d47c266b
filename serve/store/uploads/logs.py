"""Trajectories that clients logged for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select

from tandem.serve.errors import NotFoundError
from tandem.serve.store.database import Database, position
from tandem.serve.store.policies.models import find_model
from tandem.serve.store.tables.training import NO_PAYLOAD, LogRow, ModelRow
from tandem.serve.store.uploads.trajectory_index import add_source


class Logs:
    def __init__(self, database: Database):
        self._database = database

    def add(
        self, log_id: str, model_id: str, entity: str, split: str, payload_key: str, metrics: Mapping[str, float]
    ) -> LogRow:
        """Add a log entry and return its row. Raises NotFoundError."""
        with self._database.write() as session:
            model = find_model(session, model_id, entity, lock=True)
            row = LogRow(
                id=log_id,
                model_id=model_id,
                split=split,
                payload_key=payload_key,
                metrics=dict(metrics),
                created_at=self._database.now(),
            )
            session.add(row)
            if payload_key != NO_PAYLOAD:
                add_source(session, log_id, "log", model, split, payload_key, row.created_at)
        return row

    def get(self, log_id: str, entity: str) -> LogRow:
        """Return a log entry. Raises NotFoundError."""
        query = select(LogRow).join(ModelRow, ModelRow.id == LogRow.model_id)
        with self._database.read() as session:
            row = session.scalar(query.where(LogRow.id == log_id, ModelRow.entity == entity))
        if row is None:
            raise NotFoundError(
                f"There is no log entry {log_id}: the id is wrong, or it belongs to another entity.", "log_not_found"
            )
        return row

    def page(
        self, model_id: str, entity: str, limit: int, after: str | None = None, split: str | None = None
    ) -> Sequence[LogRow]:
        """Return log entries of a model, oldest first, those after the entry `after`.

        Raises NotFoundError, and UnknownCursorError for `after`.
        """
        query = select(LogRow).where(LogRow.model_id == model_id).order_by(LogRow.number).limit(limit)
        if split:
            query = query.where(LogRow.split == split)
        with self._database.read() as session:
            find_model(session, model_id, entity)
            if after:
                query = query.where(LogRow.number > position(session, LogRow, after))
            return session.scalars(query).all()
