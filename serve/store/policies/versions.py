"""Policy versions: find the one that a name means, list and delete them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, bindparam, func, literal, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.errors import GoneError, NotFoundError, UnavailableError
from tandem.serve.store.database import Database
from tandem.serve.store.policies.models import check_not_kept, find_by_name, find_model
from tandem.serve.store.tables.training import InitialVersionRow, ModelRow, VersionRow


@dataclass(frozen=True)
class PinnedPolicy:
    """The version that answers an inference request, from its admission to its last token."""

    base_model: str
    step: int
    digest: str
    model_id: str = ""
    """Empty for the base model itself."""


_NAMED = (
    ModelRow.entity == bindparam("entity"),
    ModelRow.project == bindparam("project"),
    ModelRow.name == bindparam("name"),
    ModelRow.deleted_at.is_(None),
)
_NEWEST = (
    select(ModelRow.base_model, VersionRow.step, VersionRow.digest, ModelRow.id)
    .join_from(ModelRow, VersionRow, VersionRow.model_id == ModelRow.id)
    .where(*_NAMED, VersionRow.deleted_at.is_(None))
    .order_by(VersionRow.step.desc())
    .limit(1)
)
_STEP = _NEWEST.where(VersionRow.step == bindparam("step"))
_INITIAL_DIGEST = func.coalesce(ModelRow.initial_digest, InitialVersionRow.digest)
_INITIAL = (
    select(ModelRow.base_model, literal(0), _INITIAL_DIGEST, ModelRow.id)
    .join_from(ModelRow, InitialVersionRow, InitialVersionRow.base_model == ModelRow.base_model, isouter=True)
    .where(*_NAMED, _INITIAL_DIGEST.is_not(None))
)


class Versions:
    def __init__(self, database: Database):
        self._database = database

    def resolve(self, entity: str, project: str, name: str, step: int | None) -> PinnedPolicy:
        """Return version `step` of a model, by default the newest. Raises NotFoundError or UnavailableError."""
        return self._find_quickly(entity, project, name, step) or self._find(entity, project, name, step)

    def _find_quickly(self, entity: str, project: str, name: str, step: int | None) -> PinnedPolicy | None:
        named = {"entity": entity, "project": project, "name": name}
        with self._database.quick_read() as connection:
            row = connection.execute(*((_NEWEST, named) if step is None else (_STEP, named | {"step": step}))).first()
            if row is None and not step:
                row = connection.execute(_INITIAL, named).first()
        return None if row is None else PinnedPolicy(*row)

    def _find(self, entity: str, project: str, name: str, step: int | None) -> PinnedPolicy:
        """Do the same, and tell why there is no version."""
        with self._database.read() as session:
            model = find_by_name(session, entity, project, name)
            if model is None:
                raise NotFoundError(
                    f"There is no model {entity}/{project}/{name}. Register it first, or check the name and the key.",
                    "model_not_found",
                    "model",
                )
            version = need_version(session, model, step, "model")
        return PinnedPolicy(model.base_model, version.step, version.digest, model.id)

    def get(self, model_id: str, entity: str, step: int) -> PolicyVersion:
        """Return version `step` of a model. Raises NotFoundError, GoneError or UnavailableError."""
        with self._database.read() as session:
            return need_version(session, find_model(session, model_id, entity), step, "step")

    def row(self, version: PolicyVersion) -> VersionRow:
        """Return the row of a version that was just found; version 0 has none. Raises NotFoundError."""
        with self._database.read() as session:
            row = session.get(VersionRow, (version.model_id, version.step))
        if row is None:
            raise NotFoundError(f"Version {version.step} was deleted just now.", "version_not_found", "step")
        return row

    def has_digest(self, digest: str) -> bool:
        """Return True if a version, live or not, has the checkpoint."""
        with self._database.read() as session:
            return session.scalar(select(VersionRow.step).where(VersionRow.digest == digest).limit(1)) is not None

    def resolve_base(self, base_model: str) -> PinnedPolicy:
        """Return version 0 of a base model. Raises UnavailableError while it isn't recorded yet."""
        with self._database.read() as session:
            initial = session.get(InitialVersionRow, base_model)
        if initial is None:
            raise not_ready(base_model)
        return PinnedPolicy(base_model, 0, initial.digest)

    def initial_digests(self) -> dict[str, str]:
        """Return the digest of version 0 of each base model that has one."""
        with self._database.read() as session:
            return {row.base_model: row.digest for row in session.scalars(select(InitialVersionRow))}

    def page(
        self,
        model_id: str,
        entity: str,
        limit: int,
        after: int | None = None,
        newest_first: bool = False,
        with_retired: bool = False,
    ) -> Sequence[VersionRow]:
        """Return versions of a model by step, those after the step `after`, without version 0. Raises NotFoundError.

        `with_retired`: also those that retention deleted.
        """
        is_live, is_retired = VersionRow.deleted_at.is_(None), VersionRow.retired_at.is_not(None)
        query = select(VersionRow).where(
            VersionRow.model_id == model_id, or_(is_live, is_retired) if with_retired else is_live
        )
        if after is not None:
            query = query.where(VersionRow.step < after if newest_first else VersionRow.step > after)
        order = VersionRow.step.desc() if newest_first else VersionRow.step
        with self._database.read() as session:
            find_model(session, model_id, entity)
            return session.scalars(query.order_by(order).limit(limit)).all()

    def newest_steps(self, model_ids: Collection[str]) -> dict[str, int]:
        """Return the newest step of each of these models that has a version beside version 0."""
        query = (
            select(VersionRow.model_id, func.max(VersionRow.step))
            .where(VersionRow.model_id.in_(model_ids), VersionRow.deleted_at.is_(None))
            .group_by(VersionRow.model_id)
        )
        with self._database.read() as session:
            return {model_id: step for model_id, step in session.execute(query)}

    def imported_steps(self, model_ids: Collection[str]) -> dict[str, int]:
        """Return the newest step of each of these models that neither a job nor a run made."""
        query = (
            select(VersionRow.model_id, func.max(VersionRow.step))
            .where(VersionRow.model_id.in_(model_ids), VersionRow.deleted_at.is_(None), VersionRow.origin.is_not(None))
            .where(VersionRow.origin["kind"].as_string() != "run")
            .group_by(VersionRow.model_id)
        )
        with self._database.read() as session:
            return {model_id: step for model_id, step in session.execute(query)}

    def keep(self, model_id: str, entity: str, step: int, is_kept: bool) -> VersionRow:
        """Keep a version from being deleted, or release it, and return it. A repeat changes nothing.

        Raises NotFoundError, and GoneError if retention has deleted it.
        """
        with self._database.write() as session:
            model = find_model(session, model_id, entity, lock=True)
            need_version(session, model, step, "step", lock=True)  # retention marks rows that it has locked
            row = session.get_one(VersionRow, (model_id, step))
            row.kept_at = (row.kept_at or self._database.now()) if is_kept else None
            return row

    def delete(self, model_id: str, entity: str, steps: Collection[int]) -> tuple[int, ...]:
        """Delete versions, and return the steps of those that existed. Raises NotFoundError.

        Raises ConflictError, and deletes nothing, if one of them is kept.
        """
        with self._database.write() as session:
            model = find_model(session, model_id, entity, lock=True)
            query = select(VersionRow).where(
                VersionRow.model_id == model_id, VersionRow.step.in_(steps), VersionRow.deleted_at.is_(None)
            )
            rows = session.scalars(query.with_for_update()).all()
            check_not_kept(model, rows, "steps")
            for row in rows:
                row.deleted_at = self._database.now()
            return tuple(sorted(row.step for row in rows))


def find_version(
    session: Session, model: ModelRow, step: int | None = None, lock: bool = False
) -> PolicyVersion | None:
    """Return the model's version `step`, by default the newest. None if it doesn't exist, or isn't recorded yet."""
    query = select(VersionRow).where(VersionRow.model_id == model.id, VersionRow.deleted_at.is_(None))
    if step is not None:
        query = query.where(VersionRow.step == step)
    if lock:
        query = query.with_for_update()
    if version := session.scalar(query.order_by(VersionRow.step.desc()).limit(1)):
        return PolicyVersion(model.id, version.step, version.digest)
    initial = initial_digest(session, model) if step in (None, 0) else None
    return PolicyVersion(model.id, 0, initial) if initial else None


def initial_digest(session: Session, model: ModelRow) -> str | None:
    """Return the model's version 0: that of its own LoRA settings or of its base model, None if not recorded yet."""
    if model.initial_digest is not None:
        return model.initial_digest
    initial = session.get(InitialVersionRow, model.base_model)
    return initial.digest if initial else None


def is_initial(digest: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """True for the digest of a version 0, of a base model or of LoRA settings. Its files stay."""
    of_base = select(InitialVersionRow.digest).where(InitialVersionRow.digest == digest).exists()
    return of_base | select(ModelRow.number).where(ModelRow.initial_digest == digest).exists()


def need_version(session: Session, model: ModelRow, step: int | None, param: str, lock: bool = False) -> PolicyVersion:
    """Return the version as `find_version` does. Raises NotFoundError or UnavailableError; GoneError if retired.

    `param`: the part of the request that names the step.
    """
    if version := find_version(session, model, step, lock):
        return version
    if not step:
        raise not_ready(model.base_model)
    if retired := find_retired(session, model, step):
        sentence = f"There is no version {model.path}:step{step} any more: {fate(model, step, retired)}."
        raise GoneError(sentence, "version_retired", param)
    raise NotFoundError(
        f"There is no version {model.path}:step{step}: {fate(model, step)}.", "version_not_found", param
    )


def find_retired(session: Session, model: ModelRow, step: int) -> datetime | None:
    """Return when retention deleted the model's version `step`, None if it didn't."""
    query = select(VersionRow.retired_at).where(VersionRow.model_id == model.id, VersionRow.step == step)
    return session.scalar(query)


def fate(model: ModelRow, step: int, retired_at: datetime | None = None) -> str:
    """Return why there is no such version."""
    if retired_at:
        return (
            f"it was deleted on {retired_at:%Y-%m-%d} by retention, which keeps only the newest versions of each model "
            "(retention.keep_versions)"
        )
    return "it was deleted" if step < model.next_step else "that step hasn't been trained yet"


def not_ready(base_model: str) -> UnavailableError:
    """Return the error for a base model whose version 0 isn't recorded yet."""
    return UnavailableError(
        f"The base model {base_model} is still starting. Try again in a moment; /health reports what is missing.",
        "starting",
        "model",
    )
