"""Runs and checkpoints as clients list them. Models that jobs train are runs, too, whose versions can be continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Select,
    String,
    and_,
    cast,
    false,
    func,
    literal,
    null,
    select,
    true,
    union_all,
)
from sqlalchemy.orm import Session, aliased

from tandem.serve.errors import NotFoundError
from tandem.serve.names import quoted
from tandem.serve.store.database import Database
from tandem.serve.store.tables.tinker import SAMPLER_WEIGHTS, WEIGHTS, RunCheckpointRow, RunRow
from tandem.serve.store.tables.training import JobRow, ModelRow, UtcTime, VersionRow
from tandem.serve.tinker.store.checkpoints import are_there


@dataclass(frozen=True)
class ListedCheckpoint:
    """A checkpoint of a run, or a version of a model: as a state to continue from, and as one to sample from."""

    owner: str
    """The run, or the model."""
    kind: str
    name: str
    base_model: str
    created_at: datetime
    num_bytes: int | None
    """Unknown for versions that jobs made."""
    public: bool
    user_metadata: Mapping[str, Any] | None
    expires_at: datetime | None

    @property
    def id(self) -> str:
        """The last two parts of its path."""
        return f"{self.kind}/{self.name}"

    @property
    def path(self) -> str:
        return f"tinker://{self.owner}/{self.id}"


@dataclass(frozen=True)
class ListedRun:
    """A run with its model, or a model that jobs train."""

    model: ModelRow
    run: RunRow | None
    last_used_at: datetime
    """The last request of a run, or the newest version of a model."""
    newest: Mapping[str, ListedCheckpoint]
    """Its newest checkpoint by kind."""

    @property
    def id(self) -> str:
        return self.model.id if self.run is None else self.run.id


class Catalog:
    """For a caller, runs and models of other entities don't exist."""

    def __init__(self, database: Database):
        self._database = database

    def runs(self, entity: str, limit: int, offset: int = 0, project: str | None = None) -> tuple[list[ListedRun], int]:
        """Return runs and models of an entity, the newest first, and how many there are."""
        wanted = [ModelRow.entity == entity, ModelRow.deleted_at.is_(None)]
        if project is not None:
            wanted.append(ModelRow.project == project)
        query = select(ModelRow, RunRow).outerjoin(RunRow, RunRow.model_id == ModelRow.id).where(*wanted)
        query = query.order_by(ModelRow.number.desc()).limit(limit).offset(offset)
        with self._database.read() as session:
            total = session.scalar(select(func.count()).select_from(ModelRow).where(*wanted)) or 0
            pairs = [(model, run) for model, run in session.execute(query)]
            return self._with_newest(session, pairs), total

    def run(self, entity: str, id: str) -> ListedRun:
        """Return a run, or the model with this id. Raises NotFoundError."""
        with self._database.read() as session:
            return self._with_newest(session, [_find(session, entity, id)])[0]

    def checkpoints_of(self, entity: str, id: str) -> list[ListedCheckpoint]:
        """Return all checkpoints of a run or a model, the newest first. Raises NotFoundError."""
        with self._database.read() as session:
            model, _ = _find(session, entity, id)
            return _page(session, self._all(entity, model.id), None, 0)

    def checkpoints(self, entity: str, limit: int, offset: int = 0) -> tuple[list[ListedCheckpoint], int]:
        """Return checkpoints of all runs and models of an entity, the newest first, and how many there are."""
        found = self._all(entity)
        with self._database.read() as session:
            total = session.scalar(select(func.count()).select_from(union_all(*found).subquery())) or 0
            return _page(session, found, limit, offset), total

    def runs_of_session(self, session_id: str) -> list[str]:
        """Return the ids of a session's runs in their order."""
        query = select(RunRow.id).where(RunRow.session_id == session_id).order_by(RunRow.number)
        with self._database.read() as session:
            return list(session.scalars(query))

    def _all(self, entity: str, model_id: str | None = None) -> list[Select[Any]]:
        now = self._database.now()
        of_model = true() if model_id is None else ModelRow.id == model_id
        alive = and_(ModelRow.entity == entity, ModelRow.deleted_at.is_(None), of_model)
        return [_of_runs(now).where(alive), *(_versions(kind).where(alive) for kind in (WEIGHTS, SAMPLER_WEIGHTS))]

    def _with_newest(self, session: Session, pairs: Sequence[tuple[ModelRow, RunRow | None]]) -> list[ListedRun]:
        ids = [model.id for model, _ in pairs]
        newest: dict[str, dict[str, ListedCheckpoint]] = {id: {} for id in ids}
        row, now, version = RunCheckpointRow, self._database.now(), aliased(VersionRow)
        last = select(func.max(row.number)).where(row.model_id.in_(ids), *are_there(now))
        of_runs = _of_runs(now).where(row.number.in_(session.scalars(last.group_by(row.model_id, row.kind)).all()))
        last_step = select(func.max(version.step)).where(version.model_id == ModelRow.id, version.deleted_at.is_(None))
        is_last = and_(ModelRow.id.in_(ids), VersionRow.step == last_step.scalar_subquery())
        parts = [of_runs, *(_versions(kind).where(is_last) for kind in (WEIGHTS, SAMPLER_WEIGHTS))]
        models = {model.id if run is None else run.id: model.id for model, run in pairs}
        models |= {model.id: model.id for model, _ in pairs}
        for found in reversed(_page(session, parts, None, 0)):  # a later one replaces an earlier one
            newest[models[found.owner]][found.kind] = found
        return [
            ListedRun(model, run, _last_used(model, run, newest[model.id]), newest[model.id]) for model, run in pairs
        ]


def _last_used(model: ModelRow, run: RunRow | None, newest: Mapping[str, ListedCheckpoint]) -> datetime:
    times = [model.created_at if run is None else run.last_request_at, *(one.created_at for one in newest.values())]
    return max(times)


def _find(session: Session, entity: str, id: str) -> tuple[ModelRow, RunRow | None]:
    """Return a model and its run, by the id of either. Raises NotFoundError."""
    query = select(ModelRow, RunRow).outerjoin(RunRow, RunRow.model_id == ModelRow.id)
    query = query.where(ModelRow.entity == entity, ModelRow.deleted_at.is_(None))
    found = session.execute(query.where((RunRow.id == id) | (ModelRow.id == id))).first()
    if found is None:
        raise NotFoundError(
            f"There is no training run {quoted(id)}: the id is wrong, or it was deleted, or it belongs to another "
            "entity. List the runs to see their ids.",
            "training_run_not_found",
            "training_run_id",
        )
    return found[0], found[1]


def _of_runs(now: datetime) -> Select[Any]:
    row = RunCheckpointRow
    return (
        select(
            row.run_id.label("owner"),
            row.kind.label("kind"),
            row.name.label("name"),
            ModelRow.base_model.label("base_model"),
            row.created_at.label("created_at"),
            row.num_bytes.label("num_bytes"),
            row.public.label("public"),
            row.user_metadata.label("user_metadata"),
            row.expires_at.label("expires_at"),
        )
        .join(ModelRow, ModelRow.id == row.model_id)
        .where(*are_there(now))
    )


def _versions(kind: str) -> Select[Any]:
    """Return the versions of models, as checkpoints of this kind.

    Those of a run that no job made are left out: a loop makes one in each of its steps, and names those that it wants.
    """
    return (
        select(
            VersionRow.model_id,
            literal(kind, String),
            "step" + cast(VersionRow.step, String),
            ModelRow.base_model,
            VersionRow.created_at,
            cast(null(), BigInteger),
            false(),
            cast(null(), JSON),
            cast(null(), UtcTime),
        )
        .join(ModelRow, ModelRow.id == VersionRow.model_id)
        .where(VersionRow.deleted_at.is_(None), ~_is_of_run() | _is_of_job())
    )


def _is_of_run() -> ColumnElement[bool]:
    return select(RunRow.number).where(RunRow.model_id == VersionRow.model_id).exists()


def _is_of_job() -> ColumnElement[bool]:
    job = JobRow.model_id == VersionRow.model_id, JobRow.step == VersionRow.step
    return select(JobRow.number).where(*job).exists()


def _page(session: Session, parts: Sequence[Select[Any]], limit: int | None, offset: int) -> list[ListedCheckpoint]:
    found = union_all(*parts).subquery()
    order = found.c.created_at.desc(), found.c.owner, found.c.name.desc(), found.c.kind
    rows = session.execute(select(found).order_by(*order).limit(limit).offset(offset))
    return [ListedCheckpoint(**row._mapping) for row in rows]
