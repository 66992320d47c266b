"""Datasets: rows of supervised data, stored once for an entity by their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.serve.errors import ConflictError, NotFoundError
from tandem.serve.store.database import Database, position
from tandem.serve.store.tables.training import DatasetRow, JobRow, is_open


@dataclass(frozen=True)
class NewDataset:
    """The columns of a dataset that is to be added."""

    id: str
    entity: str
    digest: str
    blob_key: str
    num_rows: int
    num_bytes: int
    ignored_fields: dict[str, int]


class Datasets:
    """For a caller, datasets of other entities don't exist."""

    def __init__(self, database: Database):
        self._database = database

    def add(self, new: NewDataset) -> DatasetRow:
        """Add a dataset, or return the entity's existing one with the same content."""
        row = DatasetRow(**asdict(new), created_at=self._database.now())
        try:
            with self._database.write() as session:
                session.add(row)
            return row
        except IntegrityError:
            existing = self.find(new.entity, new.digest)
        return existing or self.add(new)  # without one, it was deleted just now

    def find(self, entity: str, digest: str) -> DatasetRow | None:
        """Return the entity's dataset with this content."""
        with self._database.read() as session:
            return session.scalar(select(DatasetRow).where(DatasetRow.entity == entity, DatasetRow.digest == digest))

    def get(self, dataset_id: str, entity: str) -> DatasetRow:
        """Return a dataset. Raises NotFoundError."""
        with self._database.read() as session:
            return _find(session, dataset_id, entity)

    def page(
        self, entity: str, limit: int, after: str | None = None, newest_first: bool = True
    ) -> Sequence[DatasetRow]:
        """Return datasets of the entity in order of upload, those after the dataset `after`.

        Raises UnknownCursorError for `after`.
        """
        query = select(DatasetRow).where(DatasetRow.entity == entity).limit(limit)
        query = query.order_by(DatasetRow.number.desc() if newest_first else DatasetRow.number)
        with self._database.read() as session:
            if after:
                number = position(session, DatasetRow, after)
                query = query.where(DatasetRow.number < number if newest_first else DatasetRow.number > number)
            return session.scalars(query).all()

    def delete(self, dataset_id: str, entity: str) -> DatasetRow:
        """Delete a dataset and return its row. Raises NotFoundError, and ConflictError while an open job uses it."""
        with self._database.write() as session:
            row = _find(session, dataset_id, entity, lock=True)
            user = session.scalar(select(JobRow.id).where(JobRow.payload_key == row.blob_key, is_open()).limit(1))
            if user is not None:
                raise ConflictError(
                    f"Training job {user} uses dataset {dataset_id}. Cancel the job, or wait until it has ended.",
                    "dataset_in_use",
                    "dataset_id",
                )
            session.delete(row)
        return row


def lock_dataset(session: Session, dataset_id: str) -> None:
    """Keep a dataset until the transaction ends. Raises NotFoundError if it was deleted."""
    if session.scalar(select(DatasetRow.id).where(DatasetRow.id == dataset_id).with_for_update()) is None:
        raise _missing(dataset_id)


def _find(session: Session, dataset_id: str, entity: str, lock: bool = False) -> DatasetRow:
    query = select(DatasetRow).where(DatasetRow.id == dataset_id, DatasetRow.entity == entity)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise _missing(dataset_id)
    return row


def _missing(dataset_id: str) -> NotFoundError:
    return NotFoundError(
        f"There is no dataset {dataset_id}: it was deleted, the id is wrong, or it belongs to another entity.",
        "dataset_not_found",
        "dataset_id",
    )
