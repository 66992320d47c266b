"""Uploaded files: add, list, find and delete them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from tandem.serve.errors import NotFoundError
from tandem.serve.finetuning.store.tables import OPEN_STATUSES, FineTuningJobRow, UploadedFileRow
from tandem.serve.names import quoted
from tandem.serve.store.database import Database, position


class Files:
    """For a caller, files of other entities don't exist, and neither do expired ones."""

    def __init__(self, database: Database):
        self._database = database

    def add(
        self,
        id: str,
        entity: str,
        filename: str,
        purpose: str,
        num_bytes: int,
        blob_key: str,
        created_at: datetime,
        expires_at: datetime | None,
    ) -> UploadedFileRow:
        """Record a file whose contents are durable."""
        row = UploadedFileRow(
            id=id,
            entity=entity,
            filename=filename,
            purpose=purpose,
            num_bytes=num_bytes,
            blob_key=blob_key,
            created_at=created_at,
            expires_at=expires_at,
        )
        with self._database.write() as session:
            session.add(row)
        return row

    def get(self, file_id: str, entity: str) -> UploadedFileRow:
        """Return a file. Raises NotFoundError."""
        with self._database.read() as session:
            return find_file(session, file_id, entity, self._database.now())

    def used(self, file_id: str) -> UploadedFileRow:
        """Return a file that an open job uses, also a deleted one."""
        with self._database.read() as session:
            return session.scalars(select(UploadedFileRow).where(UploadedFileRow.id == file_id)).one()

    def page(
        self,
        entity: str,
        limit: int,
        after: str | None = None,
        newest_first: bool = True,
        purpose: str | None = None,
    ) -> Sequence[UploadedFileRow]:
        """Return files in order of their upload, those after the file `after`. Raises UnknownCursorError."""
        row = UploadedFileRow
        query = select(row).where(row.entity == entity, _is_live(self._database.now()))
        if purpose:
            query = query.where(row.purpose == purpose)
        with self._database.read() as session:
            if after:
                number = position(session, row, after, row.entity == entity)
                query = query.where(row.number < number if newest_first else row.number > number)
            return session.scalars(query.order_by(row.number.desc() if newest_first else row.number).limit(limit)).all()

    def num_bytes(self, entity: str) -> int:
        """Return the size of all files of an entity."""
        query = select(func.coalesce(func.sum(UploadedFileRow.num_bytes), 0))
        with self._database.read() as session:
            return int(session.scalar(query.where(UploadedFileRow.entity == entity)) or 0)

    def delete(self, file_id: str, entity: str) -> None:
        """Delete a file for its users. Raises NotFoundError."""
        with self._database.write() as session:
            row = find_file(session, file_id, entity, self._database.now(), lock=True)
            row.deleted_at = self._database.now()

    def unused(self) -> Sequence[UploadedFileRow]:
        """Return the deleted and expired files that no open job needs any more."""
        row, job = UploadedFileRow, FineTuningJobRow
        is_needed = (
            select(job.id)
            .where(job.status.in_(OPEN_STATUSES), or_(job.training_file == row.id, job.validation_file == row.id))
            .exists()
        )
        with self._database.read() as session:
            return session.scalars(select(row).where(~_is_live(self._database.now()), ~is_needed)).all()

    def forget(self, file_id: str) -> None:
        """Remove the row of a deleted file, once its contents are gone."""
        with self._database.write() as session:
            if row := session.scalar(select(UploadedFileRow).where(UploadedFileRow.id == file_id)):
                session.delete(row)

    def unknown_blobs(self, keys: Sequence[str]) -> list[str]:
        """Return the keys that are the contents of no file."""
        with self._database.read() as session:
            known = set(session.scalars(select(UploadedFileRow.blob_key)))
        return [key for key in keys if key not in known]


def find_file(session: Session, file_id: str, entity: str, now: datetime, lock: bool = False) -> UploadedFileRow:
    """Return a file that the entity owns. Raises NotFoundError."""
    query = select(UploadedFileRow).where(
        UploadedFileRow.id == file_id, UploadedFileRow.entity == entity, _is_live(now)
    )
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFoundError(
            f"There is no file {quoted(file_id)}: it was deleted or has expired, the id is wrong, or it belongs to "
            "another entity.",
            "file_not_found",
            "file_id",
        )
    return row


def _is_live(now: datetime) -> ColumnElement[bool]:
    row = UploadedFileRow
    return and_(row.deleted_at.is_(None), or_(row.expires_at.is_(None), row.expires_at > now))
