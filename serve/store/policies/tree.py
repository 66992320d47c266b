"""The tree of a model's versions: where each one comes from, what became of it, and the models forked from it.

A job's version follows the version that the job started from. That is the newest one, so the tree has a branch where
newer versions were deleted before the next job began. A version that a client of the Tinker API made follows the one
whose weights the client saved or loaded last. Imported versions follow none.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from tandem.serve.store.database import Database
from tandem.serve.store.policies.lineage import FORK, RUN
from tandem.serve.store.policies.models import find_model
from tandem.serve.store.policies.versions import initial_digest
from tandem.serve.store.tables.training import JobRow, ModelRow, VersionRow

State = Literal["live", "retired", "deleted"]


@dataclass(frozen=True)
class Parent:
    """The version from which a version was trained or forked."""

    model_id: str
    step: int
    path: str | None = None
    """The name of another model, None for the version's own."""
    exists: bool = True
    """False if that other model was deleted."""


@dataclass(frozen=True)
class MakingJob:
    """The training job that made a version."""

    id: str
    kind: str


@dataclass(frozen=True)
class ForkedModel:
    """A model that begins with a version of another one."""

    id: str
    path: str
    is_deleted: bool


@dataclass
class Node:
    """A version. Of one whose row is gone, only its job is known."""

    step: int
    state: State
    digest: str | None = None
    created_at: datetime | None = None
    gone_at: datetime | None = None
    """When it was deleted."""
    kept_at: datetime | None = None
    origin: dict[str, Any] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    has_optimizer: bool = False
    parent: Parent | None = None
    job: MakingJob | None = None
    forks: list[ForkedModel] = field(default_factory=list)

    @property
    def run_id(self) -> str | None:
        """The run of the Tinker API that made the version."""
        return self.origin["run"] if self.origin and self.origin["kind"] == RUN else None

    @property
    def checkpoint_name(self) -> str | None:
        """The name that the run's client gave it."""
        return self.origin.get("name") if self.origin and self.origin["kind"] == RUN else None

    @property
    def reward(self) -> float | None:
        """The mean reward of the trajectories that it was trained on, if there were any."""
        reward = self.metrics.get("reward")
        return reward if reward is not None and math.isfinite(reward) else None


class VersionTree:
    def __init__(self, database: Database):
        self._database = database

    def nodes(self, model_id: str, entity: str) -> list[Node]:
        """Return all versions of a model by step, from version 0 on. Raises NotFoundError."""
        with self._database.read() as session:
            model = find_model(session, model_id, entity)
            nodes = {0: Node(0, "live", initial_digest(session, model), model.created_at)}
            nodes |= {node.step: node for node in _stored(session, model_id)}
            _add_jobs(session, model_id, nodes)
            for step, forks in _forks(session, model).items():
                if step in nodes:
                    nodes[step].forks = forks
            _link_origins(session, model, nodes)
            _link_runs(session, model, nodes)
        return [nodes[step] for step in sorted(nodes)]


def _stored(session: Session, model_id: str) -> list[Node]:
    return [
        Node(
            row.step,
            "live" if row.deleted_at is None else "deleted" if row.retired_at is None else "retired",
            row.digest,
            row.created_at,
            row.deleted_at,
            row.kept_at,
            row.origin,
            row.metrics,
            has_optimizer=row.optimizer_kind is not None and row.optimizer_expired_at is None and not row.deleted_at,
        )
        for row in session.scalars(select(VersionRow).where(VersionRow.model_id == model_id))
    ]


def _add_jobs(session: Session, model_id: str, nodes: dict[int, Node]) -> None:
    """Add to each node the job that made it, and its parent. A job whose version has no row adds a deleted node."""
    job = JobRow
    made = (
        select(job.id, job.kind, job.step, job.start_step, job.start_digest, job.started_at, job.ended_at)
        .where(job.model_id == model_id, job.state == "succeeded", job.step.is_not(None))
        .order_by(job.step)
    )
    for id, kind, step, start_step, start_digest, started_at, ended_at in session.execute(made):
        assert step is not None
        node = nodes.setdefault(step, Node(step, "deleted", created_at=ended_at))
        node.job = MakingJob(id, kind)
        if start_step is None:  # a job of an earlier release
            start_step = _find_start(nodes, step, start_digest, started_at)
        if start_step is not None:
            node.parent = Parent(model_id, start_step)


def _find_start(nodes: Mapping[int, Node], step: int, digest: str | None, started_at: datetime | None) -> int | None:
    """Return the newest earlier version with this checkpoint, of those that were there when the job started."""
    found = [
        node.step
        for node in nodes.values()
        if node.step < step and node.digest == digest
        if node.gone_at is None or started_at is None or node.gone_at > started_at
    ]
    return max(found, default=None) if digest else None


def _forks(session: Session, model: ModelRow) -> dict[int, list[ForkedModel]]:
    """Return the models that were forked from the model, by the step that they begin with."""
    query = select(ModelRow).where(ModelRow.entity == model.entity, ModelRow.origin["model_id"].as_string() == model.id)
    found: dict[int, list[ForkedModel]] = defaultdict(list)
    for fork in session.scalars(query.order_by(ModelRow.number)):
        assert fork.origin is not None
        found[fork.origin["step"]].append(ForkedModel(fork.id, fork.path, fork.deleted_at is not None))
    return found


def _link_origins(session: Session, model: ModelRow, nodes: Mapping[int, Node]) -> None:
    """Link the versions that the model shares with the one it was forked from."""
    origins = {node.step: node.origin for node in nodes.values() if node.origin and node.origin["kind"] == FORK}
    if not origins and model.origin:  # a fork of version 0 has no other version
        origins = {0: model.origin}
    ids = {origin["model_id"] for origin in origins.values()}
    query = select(ModelRow.id).where(ModelRow.id.in_(ids), ModelRow.deleted_at.is_(None))
    existing: Sequence[str] = session.scalars(query).all()
    for step, origin in origins.items():
        source = origin["model_id"]
        nodes[step].parent = Parent(source, origin["step"], origin["model"], source in existing)


def _link_runs(session: Session, model: ModelRow, nodes: Mapping[int, Node]) -> None:
    """Link the versions that a run made with the versions that their weights come from."""
    parents = {
        node.step: node.origin["parent"]
        for node in nodes.values()
        if node.origin and node.origin["kind"] == RUN and node.origin.get("parent")
    }
    ids = {parent["model_id"] for parent in parents.values()} - {model.id}
    others = {row.id: row for row in session.scalars(select(ModelRow).where(ModelRow.id.in_(ids)))} if ids else {}
    for step, parent in parents.items():
        if parent["model_id"] == model.id:
            nodes[step].parent = Parent(model.id, parent["step"])
        elif (other := others.get(parent["model_id"])) is not None and other.entity == model.entity:
            nodes[step].parent = Parent(other.id, parent["step"], other.path, other.deleted_at is None)
