"""The store: all durable state of the service but blobs and checkpoint files."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from tandem.serve.store.claims import ClaimTable
from tandem.serve.store.database import Database
from tandem.serve.store.jobs import JobTable
from tandem.serve.store.models import ModelTable
from tandem.serve.store.tables import ApiKeyRow
from tandem.serve.store.versions import VersionTable


class KeyTable(Database):
    """API keys, known by their hash alone."""

    def add_key(self, name: str, entity: str, key_sha256: str, role: str) -> ApiKeyRow:
        row = ApiKeyRow(
            id=str(uuid.uuid4()),
            name=name,
            entity=entity,
            key_sha256=key_sha256,
            role=role,
            created_at=self._clock(),
        )
        with self._write() as session:
            session.add(row)
        return row

    def ensure_key(self, name: str, entity: str, key_sha256: str, role: str) -> None:
        """Adds a key unless it is there already; one that was revoked stays so."""
        try:
            self.add_key(name, entity, key_sha256, role)
        except IntegrityError:  # it is, or another process has just added it
            pass

    def find_key(self, key_sha256: str) -> ApiKeyRow | None:
        """The key with this hash, unless it was revoked."""
        query = select(ApiKeyRow).where(ApiKeyRow.key_sha256 == key_sha256, ApiKeyRow.revoked_at.is_(None))
        with self._read() as session:
            return session.scalar(query)

    def has_keys(self) -> bool:
        """Whether a key was ever created."""
        with self._read() as session:
            return session.scalar(select(ApiKeyRow.id).limit(1)) is not None

    def list_keys(self, entity: str | None = None) -> Sequence[ApiKeyRow]:
        """The keys of an entity, or of all; revoked ones too, oldest first."""
        query = select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id)
        with self._read() as session:
            return session.scalars(query.where(ApiKeyRow.entity == entity) if entity else query).all()

    def revoke_key(self, key_id: str, entity: str | None = None) -> bool:
        """Makes a key invalid from now on. False when there is none with this id, of this entity if one is named."""
        with self._write() as session:
            row = session.get(ApiKeyRow, key_id, with_for_update=True)
            if row is None or entity not in (None, row.entity):
                return False
            row.revoked_at = row.revoked_at or self._clock()
            return True


class Store(KeyTable, ModelTable, VersionTable, JobTable, ClaimTable):
    """Store(url): SQLite (`sqlite:////path/to/file.db`) or PostgreSQL (`postgresql+psycopg://...`).

    Implements the coordinator's JobStore. Safe to share between threads; every process opens its own.
    """
