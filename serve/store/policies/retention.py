"""Versions, and optimizer states of versions, that a limit on their number makes surplus.

Deleting takes two steps that may lie hours apart. A row is marked first, which no later request or job overlooks. Its
files are deleted afterwards, once no request that began before can need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, delete, func, or_, select
from sqlalchemy.orm import Session, aliased

from tandem.serve.store.database import Database
from tandem.serve.store.policies.run_files import keeps_version, needed_optimizer
from tandem.serve.store.policies.versions import is_initial
from tandem.serve.store.tables.training import JobRow, ModelRow, VersionRow, is_open


@dataclass(frozen=True)
class Surplus:
    """A version that is, or would be, deleted or relieved of its optimizer state."""

    model: str
    step: int
    digest: str


class Retention:
    """The newest `keep` versions of each model stay, and so do those that a user keeps or has named as a checkpoint of
    a run, those that samplers use, and all that an open job needs.

    Version 0 has no row here, and is never surplus.
    """

    def __init__(self, database: Database):
        self._database = database

    def surplus_versions(self, keep: int) -> list[Surplus]:
        """Return the versions that `retire` would mark."""
        return self._surplus(keep, self._is_needed())

    def retire(self, keep: int) -> list[Surplus]:
        """Mark surplus versions as deleted by retention, and return them."""
        return self._mark(keep, self._is_needed(), ("deleted_at", "retired_at"))

    def kept_versions(self, keep: int) -> list[Surplus]:
        """Return the versions that would be surplus if no user kept them."""
        return self._surplus(keep, VersionRow.kept_at.is_(None))

    def surplus_optimizers(self, keep: int) -> list[Surplus]:
        """Return the versions that `expire_optimizers` would mark."""
        return self._surplus(keep, _needs_optimizer())

    def expire_optimizers(self, keep: int) -> list[Surplus]:
        """Mark versions beyond the newest ones: training never starts with their optimizer state again."""
        return self._mark(keep, _needs_optimizer(), ("optimizer_expired_at",))

    def removable_optimizers(self, expired_before: datetime) -> Sequence[str]:
        """Return the checkpoints whose optimizer state no version needs any more, and which still have it."""
        other = aliased(VersionRow)
        needs = other.deleted_at.is_(None) & other.optimizer_expired_at.is_(None)
        is_recent = other.optimizer_expired_at >= expired_before
        is_needed = select(other.step).where(other.digest == VersionRow.digest, or_(needs, is_recent)).exists()
        query = select(VersionRow.digest).where(
            VersionRow.deleted_at.is_(None),
            VersionRow.optimizer_expired_at.is_not(None),
            VersionRow.optimizer_removed_at.is_(None),
        )
        with self._database.read() as session:
            initial, by_job, by_run = (
                is_initial(VersionRow.digest),
                _starts_open_job(),
                needed_optimizer(VersionRow.digest),
            )
            return session.scalars(query.where(~is_needed, ~initial, ~by_job, ~by_run).distinct()).all()

    def optimizer_removed(self, digest: str) -> None:
        """Record that the file is gone."""
        with self._database.write() as session:
            expired = VersionRow.optimizer_expired_at.is_not(None)
            for row in session.scalars(select(VersionRow).where(VersionRow.digest == digest, expired)):
                row.optimizer_removed_at = self._database.now()

    def forget_deleted_models(self) -> None:
        """Delete the rows of retired versions that no request can ask for, because their model is deleted."""
        gone = select(ModelRow.id).where(ModelRow.deleted_at.is_not(None))
        with self._database.write() as session:
            session.execute(
                delete(VersionRow).where(VersionRow.files_removed_at.is_not(None), VersionRow.model_id.in_(gone))
            )

    def _is_needed(self) -> ColumnElement[bool]:
        return _needed_by_open_job() | VersionRow.kept_at.is_not(None) | keeps_version(self._database.now())

    def _surplus(self, keep: int, is_needed: ColumnElement[bool]) -> list[Surplus]:
        with self._database.read() as session:
            return [
                surplus
                for model in self._models_with_more(session, keep)
                for surplus in map(model.surplus, session.scalars(_beyond(model.id, keep).where(~is_needed)))
            ]

    def _mark(self, keep: int, is_needed: ColumnElement[bool], columns: Sequence[str]) -> list[Surplus]:
        """Mark surplus rows in a transaction per model."""
        with self._database.read() as session:
            models = self._models_with_more(session, keep)
        marked: list[Surplus] = []
        for model in models:
            with self._database.write() as session:
                # A job that is just accepted may pin one of these rows, which it locks. Ask what is needed afterwards.
                session.scalars(_beyond(model.id, keep).with_for_update()).all()
                for row in session.scalars(_beyond(model.id, keep).where(~is_needed)).all():
                    for column in columns:
                        setattr(row, column, self._database.now())
                    marked.append(model.surplus(row))
        return marked

    def _models_with_more(self, session: Session, keep: int) -> list[_Model]:
        query = (
            select(ModelRow)
            .join(VersionRow, VersionRow.model_id == ModelRow.id)
            .where(ModelRow.deleted_at.is_(None), VersionRow.deleted_at.is_(None))
            .group_by(ModelRow.number)
            .having(func.count() > keep)
            .order_by(ModelRow.number)
        )
        return [_Model(row.id, row.path) for row in session.scalars(query)]


@dataclass(frozen=True)
class _Model:
    id: str
    path: str

    def surplus(self, row: VersionRow) -> Surplus:
        return Surplus(self.path, row.step, row.digest)


def _beyond(model_id: str, keep: int) -> Select[VersionRow]:
    """Return a query for the live versions of a model that are older than the newest `keep`, oldest first."""
    newest = aliased(VersionRow)
    live = select(newest.step).where(newest.model_id == model_id, newest.deleted_at.is_(None))
    oldest_kept = live.order_by(newest.step.desc()).offset(keep - 1).limit(1).scalar_subquery()
    return (
        select(VersionRow)
        .where(VersionRow.model_id == model_id, VersionRow.deleted_at.is_(None), VersionRow.step < oldest_kept)
        .order_by(VersionRow.step)
    )


def _starts_open_job() -> ColumnElement[bool]:
    """An attempt of an open job has started from the version, so the next attempt may."""
    return select(JobRow.number).where(is_open(), JobRow.start_digest == VersionRow.digest).exists()


def _needs_optimizer() -> ColumnElement[bool]:
    """The version's optimizer state stays, or has expired already."""
    return _starts_open_job() | VersionRow.kept_at.is_not(None) | VersionRow.optimizer_expired_at.is_not(None)


def _needed_by_open_job() -> ColumnElement[bool]:
    """Also: an open job has pinned the version as its KL reference, or will pin one of this model at its claim."""
    pinned = JobRow.reference_digest == VersionRow.digest
    will_pin = (
        JobRow.reference_lag.is_not(None) & JobRow.reference_digest.is_(None) & (JobRow.model_id == VersionRow.model_id)
    )
    return _starts_open_job() | select(JobRow.number).where(is_open(), or_(pinned, will_pin)).exists()
