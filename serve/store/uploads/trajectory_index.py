"""The index of trajectories as its worker sees it: sources to index or to remove, each under a lease."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import sqlalchemy
from sqlalchemy import ColumnElement, and_, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from tandem.serve.store.database import Database
from tandem.serve.store.tables.training import NO_PAYLOAD, JobRow, LogRow, ModelRow, is_open
from tandem.serve.store.tables.trajectories import KEPT, GroupRow, SourceRow, TrajectoryRow

LEASE_S = 300.0
MAX_ATTEMPTS = 3
RETRY_S = 10.0
TRAIN = "train"
"""The split of the trajectories of training jobs."""
ENROLLED_AT_ONCE = 500
DELETED_AT_ONCE = 1000
DELETED = "Its model was deleted."

_GROUPS = cast("sqlalchemy.Table", GroupRow.__table__)
_TRAJECTORIES = cast("sqlalchemy.Table", TrajectoryRow.__table__)


class LostSourceError(RuntimeError):
    """Another worker has the source now, or its trajectories are to be removed."""


@dataclass(frozen=True)
class NewGroup:
    """The columns of a group."""

    group_index: int
    size: int
    num_failed: int
    reward_mean: float | None
    reward_std_dev: float | None
    reward_min: float | None
    reward_max: float | None
    num_tokens: int
    not_trained: str | None
    start: int
    num_bytes: int


@dataclass(frozen=True)
class NewTrajectory:
    """The columns of a trajectory."""

    group_index: int
    trajectory_index: int
    reward: float | None
    first_version: int | None
    last_version: int | None
    num_turns: int
    num_tokens: int
    num_tool_calls: int
    error: str | None
    metrics: Mapping[str, float]
    metadata: Mapping[str, str]
    start: int
    num_bytes: int


@dataclass(frozen=True)
class ClaimedSource:
    """A source that a worker indexes."""

    number: int
    id: str
    kind: str
    model_id: str
    entity: str
    policy: str
    """The model's name."""
    payload_key: str
    attempt: int
    num_groups: int
    """Groups that an earlier attempt has put into the index."""
    num_trajectories: int


@dataclass(frozen=True)
class RemovableSource:
    """A source whose payload is to be deleted."""

    number: int
    id: str
    kind: str
    payload_key: str
    num_bytes: int
    num_trajectories: int
    model: str
    created_at: datetime


def add_source(
    session: Session, id: str, kind: str, model: ModelRow, split: str, payload_key: str, created_at: datetime
) -> None:
    """Add a source in the transaction that adds the row of its job or log entry."""
    row = SourceRow(id=id, kind=kind, model_id=model.id, entity=model.entity, split=split, payload_key=payload_key)
    row.state, row.created_at = "pending", created_at
    session.add(row)


def forget_sources(session: Session, model_id: str, now: datetime) -> None:
    """Have the trajectories of a deleted model removed."""
    kept = SourceRow.model_id == model_id, SourceRow.state != "removed"
    session.execute(update(SourceRow).where(*kept).values(state="removing", reason=DELETED, removed_at=now))


class TrajectoryIndex:
    """Rows of an index. A claim is fenced by its attempt: after another claim, `put` raises LostSourceError."""

    def __init__(self, database: Database):
        self._database = database

    def enrol(self) -> int:
        """Add jobs and log entries of an earlier release as sources, some at a time. Return their number."""
        jobs = select(JobRow.id, JobRow.payload_key, JobRow.created_at, ModelRow).join(JobRow.model)
        jobs = jobs.where(JobRow.kind == "rl", ModelRow.deleted_at.is_(None))
        jobs = jobs.where(~select(SourceRow.number).where(SourceRow.id == JobRow.id).exists())
        logs = select(LogRow.id, LogRow.payload_key, LogRow.created_at, LogRow.split, ModelRow)
        logs = logs.join(ModelRow, ModelRow.id == LogRow.model_id).where(LogRow.payload_key != NO_PAYLOAD)
        logs = logs.where(~select(SourceRow.number).where(SourceRow.id == LogRow.id).exists())
        with self._database.write() as session:
            found = [
                (id, "job", model, TRAIN, key, at) for id, key, at, model in session.execute(_oldest(jobs, JobRow))
            ]
            found += [
                (id, "log", model, split, key, at)
                for id, key, at, split, model in session.execute(_oldest(logs, LogRow))
            ]
            for source in sorted(found, key=lambda source: source[-1]):
                add_source(session, *source)
        return len(found)

    def has_pending(self) -> bool:
        """Return True if some source can be claimed now, to be indexed."""
        waits = SourceRow.state == "pending", SourceRow.lease_expires_at <= self._database.now()
        return self._exists(_is_unfinished(), *waits)

    def has_removals(self) -> bool:
        """Return True if the trajectories of some source are to be removed."""
        ended = or_(SourceRow.kind == "log", _has_ended_job())
        of_unkept = and_(SourceRow.state == "unkept", ended)
        return self._exists(_is_unfinished(), or_(SourceRow.state == "removing", of_unkept))

    def num_pending(self, entity: str, model_id: str | None = None) -> dict[str, int]:
        """Return how many jobs and log entries of an entity, or of its model, aren't indexed yet, by kind."""
        query = select(SourceRow.kind, func.count()).where(SourceRow.entity == entity, SourceRow.state == "pending")
        if model_id is not None:
            query = query.where(SourceRow.model_id == model_id)
        with self._database.read() as session:
            return {kind: number for kind, number in session.execute(query.group_by(SourceRow.kind))}

    def claim(self, unkept: Collection[str] = ()) -> ClaimedSource | None:
        """Return the newest source to index, under a lease; None if there is none.

        Sources of the entities `unkept` are marked instead, and never indexed.
        """
        now = self._database.now()
        waits = SourceRow.state == "pending", SourceRow.lease_expires_at <= now
        with self._database.write() as session:
            if unkept:
                of_unkept = SourceRow.state == "pending", SourceRow.entity.in_(unkept)
                reason = "Its project keeps no trajectories (keep_trajectories)."
                session.execute(update(SourceRow).where(*of_unkept).values(state="unkept", reason=reason))
            query = select(SourceRow, ModelRow).join(ModelRow, ModelRow.id == SourceRow.model_id).where(*waits)
            query = query.order_by(SourceRow.number.desc()).limit(1).with_for_update(of=SourceRow, skip_locked=True)
            found = session.execute(query).first()
            if found is None:
                return None
            row, model = found
            row.attempt += 1
            if row.attempt > 1:
                _drop_incomplete_group(session, row)
            row.lease_expires_at = now + timedelta(seconds=LEASE_S)
            return ClaimedSource(
                number=row.number,
                id=row.id,
                kind=row.kind,
                model_id=row.model_id,
                entity=row.entity,
                policy=model.path,
                payload_key=row.payload_key,
                attempt=row.attempt,
                num_groups=row.num_groups,
                num_trajectories=row.num_trajectories,
            )

    def measured(self, source: ClaimedSource, num_bytes: int) -> None:
        """Record the size of the payload."""
        self._change(source, num_bytes=num_bytes)

    def put(self, source: ClaimedSource, groups: Sequence[NewGroup], trajectories: Sequence[NewTrajectory]) -> None:
        """Add trajectories of a source, and the groups that are complete with them, all or none. Extend the lease.

        A later attempt begins after the last complete group. Raises LostSourceError.
        """
        now = self._database.now()
        of_source: dict[str, Any] = {"source_number": source.number}
        owned = of_source | {"entity": source.entity, "model_id": source.model_id}
        with self._database.write() as session:
            self._change_in(
                session,
                source,
                lease_expires_at=now + timedelta(seconds=LEASE_S),
                num_groups=SourceRow.num_groups + len(groups),
                num_trajectories=SourceRow.num_trajectories + len(trajectories),
            )
            # Plain statements, without the ORM's objects: a job may have tens of thousands of rows.
            if groups:
                session.execute(insert(_GROUPS), [vars(group) | of_source for group in groups])
            if trajectories:
                session.execute(insert(_TRAJECTORIES), [vars(one) | owned for one in trajectories])

    def finish(self, source: ClaimedSource) -> None:
        """Mark the source as indexed. Raises LostSourceError."""
        self._change(source, state="indexed", reason=None)

    def fail(self, source: ClaimedSource, reason: str) -> None:
        """Record why an attempt failed. After the last one, the source stays without an index."""
        state = "failed" if source.attempt >= MAX_ATTEMPTS else "pending"
        retry_at = self._database.now() + timedelta(seconds=RETRY_S * source.attempt)
        self._change(source, state=state, reason=reason, lease_expires_at=retry_at)

    def mark_unkept(self) -> int:
        """Have the trajectories of projects that keep none removed, once their jobs have ended. Return the number."""
        ended = or_(SourceRow.kind == "log", _has_ended_job())
        query = update(SourceRow).where(SourceRow.state == "unkept", ended)
        with self._database.write() as session:
            marked = session.execute(query.values(state="removing", removed_at=self._database.now()))
            return int(marked.rowcount)  # type: ignore[attr-defined]  # of an update, the result has it

    def removable(self, older_than: datetime | None, keep_bytes: int | None) -> list[RemovableSource]:
        """Return what `mark_removable` would mark, the oldest first, without marking it."""
        with self._database.read() as session:
            return self._removable(session, older_than, keep_bytes)

    def mark_removable(self, older_than: datetime | None, keep_bytes: int | None, reasons: Mapping[str, str]) -> int:
        """Have sources removed that are older than a time, and the oldest ones beyond a size. Return their number.

        The payloads of open jobs stay. `reasons` has a sentence for "age" and for "bytes".
        """
        now, number = self._database.now(), 0
        with self._database.read() as session:
            found = self._removable(session, older_than, keep_bytes)
        for source in found:
            is_old = older_than is not None and source.created_at < older_than
            still = SourceRow.number == source.number, SourceRow.state.in_(KEPT)
            change = update(SourceRow).where(*still, or_(SourceRow.kind == "log", _has_ended_job()))
            with self._database.write() as session:
                marked = session.execute(
                    change.values(state="removing", reason=reasons["age" if is_old else "bytes"], removed_at=now)
                )
                number += int(marked.rowcount)  # type: ignore[attr-defined]  # of an update, the result has it
        return number

    def to_remove(self, limit: int = 100) -> list[RemovableSource]:
        """Return sources whose payload is to be deleted."""
        with self._database.read() as session:
            query = _described().where(SourceRow.state == "removing").order_by(SourceRow.number).limit(limit)
            return [_removable_source(row, model) for row, model in session.execute(query)]

    def drop_rows(self, number: int) -> None:
        """Delete the index of a source, in transactions of a bounded size."""
        place = TrajectoryRow.group_index, TrajectoryRow.trajectory_index
        while True:
            with self._database.write() as session:
                own = select(*place).where(TrajectoryRow.source_number == number).order_by(*place)
                last = session.execute(own.offset(DELETED_AT_ONCE).limit(1)).first()
                query = delete(TrajectoryRow).where(TrajectoryRow.source_number == number)
                if last is not None:
                    query = query.where(TrajectoryRow.group_index <= last.group_index)
                session.execute(query)
                if last is None:
                    session.execute(delete(GroupRow).where(GroupRow.source_number == number))
                    return

    def removed(self, number: int) -> None:
        """Record that the payload and the index of a source are gone."""
        with self._database.write() as session:
            session.execute(update(SourceRow).where(SourceRow.number == number).values(state="removed"))

    def _removable(
        self, session: Session, older_than: datetime | None, keep_bytes: int | None
    ) -> list[RemovableSource]:
        may_go = SourceRow.state.in_(KEPT), or_(SourceRow.kind == "log", _has_ended_job())
        found: dict[int, RemovableSource] = {}
        oldest_first = _described().where(*may_go).order_by(SourceRow.number)
        if older_than is not None:
            for row, model in session.execute(oldest_first.where(SourceRow.created_at < older_than)):
                found[row.number] = _removable_source(row, model)
        if keep_bytes is not None:
            kept = select(func.sum(SourceRow.num_bytes)).where(SourceRow.state.in_(KEPT))
            surplus = (session.scalar(kept) or 0) - keep_bytes - sum(source.num_bytes for source in found.values())
            rows = iter(session.execute(oldest_first.where(SourceRow.num_bytes > 0)) if surplus > 0 else ())
            while surplus > 0 and (next_row := next(rows, None)) is not None:
                row, model = next_row
                if row.number not in found:
                    found[row.number] = _removable_source(row, model)
                    surplus -= row.num_bytes
        return list(found.values())

    def _exists(self, *conditions: ColumnElement[bool]) -> bool:
        with self._database.read() as session:
            return session.scalar(select(SourceRow.number).where(*conditions).limit(1)) is not None

    def _change(self, source: ClaimedSource, **columns: Any) -> None:
        with self._database.write() as session:
            self._change_in(session, source, **columns)

    def _change_in(self, session: Session, source: ClaimedSource, **columns: Any) -> None:
        held = SourceRow.number == source.number, SourceRow.attempt == source.attempt, SourceRow.state == "pending"
        changed = session.execute(update(SourceRow).where(*held).values(**columns))
        if changed.rowcount != 1:  # type: ignore[attr-defined]  # of an update, the result has it
            raise LostSourceError(f"Source {source.id} isn't this worker's any more.")


def _oldest(query: Any, table: type[JobRow | LogRow]) -> Any:
    return query.order_by(table.number).limit(ENROLLED_AT_ONCE)


def _drop_incomplete_group(session: Session, row: SourceRow) -> None:
    """Delete the trajectories of a group that an attempt left incomplete."""
    own = TrajectoryRow.source_number == row.number
    session.execute(delete(TrajectoryRow).where(own, TrajectoryRow.group_index >= row.num_groups))
    row.num_trajectories = session.scalar(select(func.count()).select_from(TrajectoryRow).where(own)) or 0


def _is_unfinished() -> ColumnElement[bool]:
    # As the partial index writes it; with parameters, SQLite wouldn't use the index.
    states: ColumnElement[Any] = bindparam(
        "states", ("pending", "unkept", "removing"), expanding=True, literal_execute=True
    )
    return SourceRow.state.in_(states)


def _has_ended_job() -> ColumnElement[bool]:
    return select(JobRow.number).where(JobRow.id == SourceRow.id, ~is_open()).exists()


def _described() -> Any:
    return select(SourceRow, ModelRow).join(ModelRow, ModelRow.id == SourceRow.model_id)


def _removable_source(row: SourceRow, model: ModelRow) -> RemovableSource:
    return RemovableSource(
        number=row.number,
        id=row.id,
        kind=row.kind,
        payload_key=row.payload_key,
        num_bytes=row.num_bytes,
        num_trajectories=row.num_trajectories,
        model=model.path,
        created_at=row.created_at,
    )
