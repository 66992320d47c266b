"""Versions: which one a name means, what a model has, and what may be removed from the artifact store."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session, aliased

from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.errors import NotFoundError, UnavailableError
from tandem.serve.store.database import Database
from tandem.serve.store.models import find_by_name, find_model
from tandem.serve.store.tables import InitialVersionRow, JobRow, ModelRow, VersionRow, is_open


@dataclass(frozen=True)
class PinnedPolicy:
    """What answers an inference request: decided when the request is admitted, the same until its last token."""

    base_model: str
    step: int
    digest: str


def find_version(
    session: Session, model: ModelRow, step: int | None = None, lock: bool = False
) -> PolicyVersion | None:
    """The model's version `step`, or its newest one. None when there is none, or version 0 isn't recorded yet."""
    query = select(VersionRow).where(VersionRow.model_id == model.id, VersionRow.deleted_at.is_(None))
    if step is not None:
        query = query.where(VersionRow.step == step)
    if lock:
        query = query.with_for_update()
    if version := session.scalar(query.order_by(VersionRow.step.desc()).limit(1)):
        return PolicyVersion(model.id, version.step, version.digest)
    initial = session.get(InitialVersionRow, model.base_model) if step in (None, 0) else None
    return PolicyVersion(model.id, 0, initial.digest) if initial else None


class VersionTable(Database):
    """Queries and changes of policy versions."""

    def resolve(self, entity: str, project: str, name: str, step: int | None) -> PinnedPolicy:
        """The version that serves a model's name now. Raises NotFoundError or UnavailableError."""
        with self._read() as session:
            model = find_by_name(session, entity, project, name)
            if model is None:
                raise NotFoundError(
                    f"There is no model {entity}/{project}/{name}. Register it first, or check the name and the key.",
                    "model_not_found",
                    "model",
                )
            version = find_version(session, model, step)
        if version:
            return PinnedPolicy(model.base_model, version.step, version.digest)
        if not step:
            raise not_ready(model.base_model)
        fate = "it was deleted" if step < model.next_step else "that step hasn't been trained yet"
        raise NotFoundError(f"There is no version {model.path}:step{step}: {fate}.", "version_not_found", "model")

    def resolve_base(self, base_model: str) -> PinnedPolicy:
        """Version 0 of a base model. Raises UnavailableError when it isn't recorded yet."""
        with self._read() as session:
            initial = session.get(InitialVersionRow, base_model)
        if initial is None:
            raise not_ready(base_model)
        return PinnedPolicy(base_model, 0, initial.digest)

    def initial_versions(self) -> dict[str, str]:
        """The digest of version 0, for each base model that has one."""
        with self._read() as session:
            return {row.base_model: row.digest for row in session.scalars(select(InitialVersionRow))}

    def versions(
        self, model_id: str, entity: str, limit: int, after: int | None = None, newest_first: bool = False
    ) -> Sequence[VersionRow]:
        """The model's versions by step, those past the step `after`; version 0 isn't listed. Raises NotFoundError."""
        query = select(VersionRow).where(VersionRow.model_id == model_id, VersionRow.deleted_at.is_(None))
        if after is not None:
            query = query.where(VersionRow.step < after if newest_first else VersionRow.step > after)
        order = VersionRow.step.desc() if newest_first else VersionRow.step
        with self._read() as session:
            find_model(session, model_id, entity)
            return session.scalars(query.order_by(order).limit(limit)).all()

    def newest_steps(self, model_ids: Collection[str]) -> dict[str, int]:
        """The newest step of each of these models that has any version but 0."""
        query = select(VersionRow.model_id, func.max(VersionRow.step)).group_by(VersionRow.model_id)
        with self._read() as session:
            rows = session.execute(query.where(VersionRow.model_id.in_(model_ids), VersionRow.deleted_at.is_(None)))
            return dict(rows.all())

    def delete_versions(self, model_id: str, entity: str, steps: Collection[int]) -> tuple[int, ...]:
        """Deletes versions, invisible from now on, and returns those there were. Raises NotFoundError."""
        with self._write() as session:
            find_model(session, model_id, entity, lock=True)
            query = select(VersionRow).where(
                VersionRow.model_id == model_id, VersionRow.step.in_(steps), VersionRow.deleted_at.is_(None)
            )
            rows = session.scalars(query).all()
            for row in rows:
                row.deleted_at = self._clock()
            return tuple(sorted(row.step for row in rows))

    def unused_digests(self) -> Sequence[str]:
        """Checkpoints of deleted versions that no version of any model and no open job needs any more."""
        dead, live, lagged = VersionRow, aliased(VersionRow), aliased(VersionRow)
        needed_by_version = select(live.step).where(live.digest == dead.digest, live.deleted_at.is_(None)).exists()
        needed_by_job = (
            select(JobRow.number)
            .where(is_open(), or_(JobRow.start_digest == dead.digest, JobRow.reference_digest == dead.digest))
            .exists()
        )
        # A job that wants a reference some versions before its start may want any that was there when it was accepted.
        needed_by_lag = (
            select(JobRow.number)
            .join(lagged, lagged.model_id == JobRow.model_id)
            .where(is_open(), JobRow.reference_lag.is_not(None), lagged.deleted_at > JobRow.created_at)
            .where(lagged.digest == dead.digest)
            .exists()
        )
        # A job that began where the deleted version's job began may make the same checkpoint. It would find the files,
        # leave them as they are, and then lose them.
        maker, repeating = aliased(JobRow), aliased(JobRow)
        needed_by_repetition = (
            select(repeating.number)
            .join(maker, maker.start_digest == repeating.start_digest)
            .where(is_open(repeating), maker.model_id == dead.model_id, maker.step == dead.step)
            .exists()
        )
        is_initial = select(InitialVersionRow.digest).where(InitialVersionRow.digest == dead.digest).exists()
        with self._read() as session:
            dead_digests = select(dead.digest).where(dead.deleted_at.is_not(None)).distinct()
            needed = needed_by_version | needed_by_job | needed_by_lag | needed_by_repetition | is_initial
            return session.scalars(dead_digests.where(~needed)).all()

    def forget_digest(self, digest: str) -> None:
        """Drops the rows of deleted versions with this digest, once its files are gone."""
        with self._write() as session:
            session.execute(delete(VersionRow).where(VersionRow.digest == digest, VersionRow.deleted_at.is_not(None)))


def not_ready(base_model: str) -> UnavailableError:
    return UnavailableError(
        f"The base model {base_model} is still starting. Try again in a moment; /health says what is missing.",
        "starting",
        "model",
    )
