"""API keys, identified by their hash."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import bindparam, select
from sqlalchemy.exc import IntegrityError

from tandem.serve.errors import NotFoundError
from tandem.serve.store.database import Database
from tandem.serve.store.tables.training import ApiKeyRow

_FIND = select(ApiKeyRow.id, ApiKeyRow.entity, ApiKeyRow.role).where(
    ApiKeyRow.key_sha256 == bindparam("key_sha256"), ApiKeyRow.revoked_at.is_(None)
)


@dataclass(frozen=True)
class FoundKey:
    """A valid key: to whom it belongs, and its role."""

    id: str
    entity: str
    role: str


class Keys:
    def __init__(self, database: Database):
        self._database = database

    def add(self, name: str, entity: str, key_sha256: str, role: str) -> ApiKeyRow:
        """Add a key and return its row."""
        row = ApiKeyRow(
            id=str(uuid.uuid4()),
            name=name,
            entity=entity,
            key_sha256=key_sha256,
            role=role,
            created_at=self._database.now(),
        )
        with self._database.write() as session:
            session.add(row)
        return row

    def ensure(self, name: str, entity: str, key_sha256: str, role: str) -> None:
        """Add a key unless it exists. A revoked key stays revoked."""
        with suppress(IntegrityError):  # it exists, or another process has just added it
            self.add(name, entity, key_sha256, role)

    def find(self, key_sha256: str) -> FoundKey | None:
        """Return the key with this hash, unless it was revoked."""
        with self._database.quick_read() as connection:
            row = connection.execute(_FIND, {"key_sha256": key_sha256}).first()
        return None if row is None else FoundKey(*row)

    def get(self, key_id: str) -> ApiKeyRow:
        """Return a key by its id. Raises NotFoundError."""
        with self._database.read() as session:
            row = session.get(ApiKeyRow, key_id)
        if row is None:
            raise NotFoundError(f"There is no key {key_id}.", "key_not_found", "key_id")
        return row

    def exist(self) -> bool:
        """Return True if a key was ever created."""
        with self._database.read() as session:
            return session.scalar(select(ApiKeyRow.id).limit(1)) is not None

    def all(self, entity: str | None = None) -> Sequence[ApiKeyRow]:
        """Return the keys of an entity, or of all, including revoked ones, oldest first."""
        query = select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id)
        with self._database.read() as session:
            return session.scalars(query.where(ApiKeyRow.entity == entity) if entity else query).all()

    def revoke(self, key_id: str, entity: str | None = None) -> bool:
        """Revoke a key. Return False if no key has this id, or it belongs to another entity than the given one."""
        with self._database.write() as session:
            row = session.get(ApiKeyRow, key_id, with_for_update=True)
            if row is None or entity not in (None, row.entity):
                return False
            row.revoked_at = row.revoked_at or self._database.now()
            return True
