"""The index of trajectories as the API reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, tuple_
from sqlalchemy.orm import Session

from tandem.serve.errors import GoneError, NotFoundError
from tandem.serve.store.database import Database, UnknownCursorError
from tandem.serve.store.tables.training import JobRow, ModelRow
from tandem.serve.store.tables.trajectories import GONE, KEPT, GroupRow, SourceRow, TrajectoryRow

ROWS_AT_ONCE = 5000
"""Rows of sources that one query goes through, unless a single source has more."""
REWARDS_OF_GROUP = 128
Place = tuple[str, int, int]
"""The source's id, the group's index and the trajectory's index."""
GroupSort = Literal["worst", "best", "spread", "order"]


class Range(NamedTuple):
    """Bounds of a number, both inclusive."""

    least: float | None = None
    most: float | None = None


ANY = Range()


@dataclass(frozen=True)
class Filters:
    """Which trajectories of an entity are searched."""

    entity: str
    model_id: str | None = None
    source_id: str | None = None
    """A training job or a log entry."""
    split: str | None = None
    step: int | None = None
    """The version that sampled a turn."""
    group: int | None = None
    reward: Range = ANY
    errors: bool = False
    """Only those with an error."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Range] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A trajectory of a list."""

    row: TrajectoryRow
    source: SourceRow
    model: ModelRow
    job: JobRow | None


@dataclass(frozen=True)
class FoundGroup:
    row: GroupRow
    rewards: Sequence[tuple[int, float | None]]
    """Index and reward of the first trajectories and failed rollouts."""


@dataclass(frozen=True)
class Removed:
    """Sources whose trajectories are gone for one reason."""

    reason: str
    num_sources: int
    num_trajectories: int


class TrajectorySearch:
    """For a caller, trajectories of other entities don't exist."""

    def __init__(self, database: Database):
        self._database = database

    def count(self, filters: Filters) -> int:
        """Return the number of matching trajectories in the index."""
        query = select(func.count()).select_from(TrajectoryRow).where(*_matching(filters))
        with self._database.read() as session:
            return session.scalar(query.where(_of_sources(filters))) or 0

    def count_until(self, filters: Filters, place: Place, newest_first: bool) -> int:
        """Return how many of them a list in order of time has up to a place, and including it."""
        with self._database.read() as session:
            number = _source_number(session, place[0], filters.entity)
            before = SourceRow.number > number if newest_first else SourceRow.number < number
            inside = tuple_(TrajectoryRow.group_index, TrajectoryRow.trajectory_index) <= place[1:]
            query = select(func.count()).select_from(TrajectoryRow).where(*_matching(filters))
            earlier = session.scalar(query.where(_of_sources(filters, before))) or 0
            own = query.where(_of_sources(filters, SourceRow.number == number), inside)
            return earlier + (session.scalar(own) or 0)

    def by_time(self, filters: Filters, limit: int, after: Place | None, newest_first: bool) -> list[Found]:
        """Return matching trajectories, those of a source in their own order.

        Raises UnknownCursorError for `after`.
        """
        found: list[Found] = []
        with self._database.read() as session:
            number = None if after is None else _source_number(session, after[0], filters.entity)
            for sources in _chunks(session.scalars(_sources_by_time(filters, number, newest_first)).all()):
                numbers = [source.number for source in sources]
                query = select(TrajectoryRow).where(TrajectoryRow.source_number.in_(numbers), *_matching(filters))
                if number in numbers and after is not None:
                    place = tuple_(TrajectoryRow.group_index, TrajectoryRow.trajectory_index)
                    query = query.where(or_(TrajectoryRow.source_number != number, place > after[1:]))
                in_time = TrajectoryRow.source_number.desc() if newest_first else TrajectoryRow.source_number
                query = query.order_by(in_time, TrajectoryRow.group_index, TrajectoryRow.trajectory_index)
                rows = session.scalars(query.limit(limit - len(found))).all()
                found += _described(session, rows, sources)
                if len(found) == limit:
                    break
        return found

    def by_reward(self, filters: Filters, limit: int, after: Place | None, best_first: bool) -> list[Found]:
        """Return matching trajectories that have a reward. Raises UnknownCursorError for `after`."""
        order = [
            TrajectoryRow.reward,
            TrajectoryRow.source_number,
            TrajectoryRow.group_index,
            TrajectoryRow.trajectory_index,
        ]
        owned = TrajectoryRow.entity == filters.entity
        if filters.model_id is not None:  # each index begins with one of the two
            owned = TrajectoryRow.model_id == filters.model_id
        query = select(TrajectoryRow).where(owned, TrajectoryRow.reward.is_not(None), *_matching(filters))
        query = query.where(_of_sources(filters)).limit(limit)
        with self._database.read() as session:
            if after is not None:
                row = _row(session, after, filters.entity)
                if row is None or row.reward is None:
                    raise UnknownCursorError(after)
                last = row.reward, row.source_number, row.group_index, row.trajectory_index
                query = query.where(tuple_(*order) < last if best_first else tuple_(*order) > last)
            query = query.order_by(*(column.desc() if best_first else column for column in order))
            rows = session.scalars(query).all()
            numbers = {row.source_number for row in rows}
            sources = session.scalars(select(SourceRow).where(SourceRow.number.in_(numbers))).all()
            return _described(session, rows, sources)

    def get(self, place: Place, entity: str) -> tuple[Found, GroupRow]:
        """Return a trajectory and its group.

        Raises GoneError if it was removed, NotFoundError if there is none or if it isn't indexed yet.
        """
        with self._database.read() as session:
            source = _source(session, place[0], entity)
            row = _row(session, place, entity)
            if row is None:
                raise _missing_trajectory(source, place)
            group = session.get_one(GroupRow, (source.number, place[1]))
            return _described(session, [row], [source])[0], group

    def source(self, source_id: str, entity: str) -> SourceRow:
        """Return a source. Raises GoneError and NotFoundError as `get` does."""
        with self._database.read() as session:
            return _source(session, source_id, entity)

    def groups(self, source: SourceRow, limit: int, after: int | None, sort: GroupSort) -> list[FoundGroup]:
        """Return groups of a source: the worst or best mean first, the largest spread first, or in their order.

        Groups without a reward come last. Raises UnknownCursorError for the index `after` of a group.
        """
        key: ColumnElement[Any] = func.coalesce(
            {"worst": GroupRow.reward_mean, "best": -GroupRow.reward_mean, "spread": -GroupRow.reward_std_dev}.get(
                sort, GroupRow.group_index
            ),
            1e300,
        )
        query = select(GroupRow).where(GroupRow.source_number == source.number)
        with self._database.read() as session:
            if after is not None:
                of_last = select(key).where(GroupRow.source_number == source.number, GroupRow.group_index == after)
                last = session.scalar(of_last)
                if last is None:
                    raise UnknownCursorError(after)
                query = query.where(or_(key > last, and_(key == last, GroupRow.group_index > after)))
            rows = session.scalars(query.order_by(key, GroupRow.group_index).limit(limit)).all()
            own = select(TrajectoryRow.group_index, TrajectoryRow.trajectory_index, TrajectoryRow.reward)
            own = own.where(
                TrajectoryRow.source_number == source.number,
                TrajectoryRow.group_index.in_([row.group_index for row in rows]),
                TrajectoryRow.trajectory_index < REWARDS_OF_GROUP,
            )
            rewards: dict[int, list[tuple[int, float | None]]] = {row.group_index: [] for row in rows}
            for group, index, reward in session.execute(own.order_by(TrajectoryRow.trajectory_index)):
                rewards[group].append((index, reward))
            return [FoundGroup(row, rewards[row.group_index]) for row in rows]

    def job_of_version(self, model_id: str, step: int | None, entity: str) -> JobRow | None:
        """Return the job that made a version, or the newest version that any job made; None if none did."""
        made = JobRow.step.is_not(None) if step is None else JobRow.step == step
        query = select(JobRow).join(JobRow.model).where(ModelRow.entity == entity, JobRow.model_id == model_id, made)
        with self._database.read() as session:
            return session.scalar(query.order_by(JobRow.step.desc()).limit(1))

    def removed(self, entity: str, model_id: str | None = None) -> list[Removed]:
        """Return the counts of an entity's trajectories that are gone, by reason. Deleted models don't count."""
        query = select(SourceRow.reason, func.count(), func.sum(SourceRow.num_trajectories))
        query = query.join(ModelRow, ModelRow.id == SourceRow.model_id).where(ModelRow.deleted_at.is_(None))
        query = query.where(SourceRow.entity == entity, SourceRow.state.in_(GONE))
        if model_id is not None:
            query = query.where(SourceRow.model_id == model_id)
        with self._database.read() as session:
            rows = session.execute(query.group_by(SourceRow.reason).order_by(SourceRow.reason))
            return [Removed(reason or "", number, int(total or 0)) for reason, number, total in rows]

    def num_supervised(self, entity: str, model_id: str | None = None) -> int:
        """Return the number of jobs whose data isn't trajectories."""
        query = select(func.count()).select_from(JobRow).join(JobRow.model)
        query = query.where(ModelRow.entity == entity, JobRow.kind != "rl", ModelRow.deleted_at.is_(None))
        if model_id is not None:
            query = query.where(JobRow.model_id == model_id)
        with self._database.read() as session:
            return session.scalar(query) or 0


def _visible(filters: Filters) -> list[ColumnElement[bool]]:
    """Conditions on the source."""
    found: list[ColumnElement[bool]] = [SourceRow.entity == filters.entity, SourceRow.state.in_(KEPT)]
    if filters.model_id is not None:
        found.append(SourceRow.model_id == filters.model_id)
    if filters.source_id is not None:
        found.append(SourceRow.id == filters.source_id)
    if filters.split is not None:
        found.append(SourceRow.split == filters.split)
    return found


def _of_sources(filters: Filters, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    numbers = select(SourceRow.number).where(*_visible(filters), *conditions)
    return TrajectoryRow.source_number.in_(numbers)


def _matching(filters: Filters) -> Iterator[ColumnElement[bool]]:
    """Conditions on the trajectory."""
    if filters.step is not None:
        yield TrajectoryRow.first_version <= filters.step
        yield TrajectoryRow.last_version >= filters.step
    if filters.group is not None:
        yield TrajectoryRow.group_index == filters.group
    if filters.errors:
        yield TrajectoryRow.error.is_not(None)
    yield from _within(TrajectoryRow.reward, filters.reward)
    for name, value in filters.metadata.items():
        yield TrajectoryRow.notes[name].as_string() == value
    for name, bounds in filters.metrics.items():
        yield from _within(TrajectoryRow.numbers[name].as_float(), bounds)


def _within(number: Any, bounds: Range) -> Iterator[ColumnElement[bool]]:
    if bounds.least is not None:
        yield number >= bounds.least
    if bounds.most is not None:
        yield number <= bounds.most


def _sources_by_time(filters: Filters, number: int | None, newest_first: bool) -> Select[SourceRow]:
    query = select(SourceRow).where(*_visible(filters), SourceRow.num_trajectories > 0)
    if number is not None:
        query = query.where(SourceRow.number <= number if newest_first else SourceRow.number >= number)
    return query.order_by(SourceRow.number.desc() if newest_first else SourceRow.number)


def _chunks(sources: Sequence[SourceRow]) -> Iterator[list[SourceRow]]:
    """Yield sources in lists with a bounded number of trajectories."""
    chunk: list[SourceRow] = []
    num_rows = 0
    for source in sources:
        if chunk and num_rows + source.num_trajectories > ROWS_AT_ONCE:
            yield chunk
            chunk, num_rows = [], 0
        chunk.append(source)
        num_rows += source.num_trajectories
    if chunk:
        yield chunk


def _described(session: Session, rows: Sequence[TrajectoryRow], sources: Sequence[SourceRow]) -> list[Found]:
    by_number = {source.number: source for source in sources}
    found = [by_number[row.source_number] for row in rows]
    ids = {source.id for source in found if source.kind == "job"}
    jobs = {job.id: job for job in session.scalars(select(JobRow).where(JobRow.id.in_(ids)))} if ids else {}
    own = select(ModelRow).where(ModelRow.id.in_({source.model_id for source in found}))
    models = {model.id: model for model in session.scalars(own)} if found else {}
    return [
        Found(row, source, models[source.model_id], jobs.get(source.id))
        for row, source in zip(rows, found, strict=True)
    ]


def _source_number(session: Session, source_id: str, entity: str) -> int:
    query = select(SourceRow.number).where(SourceRow.id == source_id, SourceRow.entity == entity)
    number = session.scalar(query)
    if number is None:
        raise UnknownCursorError(source_id)
    return number


def _row(session: Session, place: Place, entity: str) -> TrajectoryRow | None:
    source_id, group, index = place
    query = select(TrajectoryRow).join(SourceRow, SourceRow.number == TrajectoryRow.source_number)
    query = query.where(SourceRow.id == source_id, SourceRow.entity == entity)
    return session.scalar(query.where(TrajectoryRow.group_index == group, TrajectoryRow.trajectory_index == index))


def _source(session: Session, source_id: str, entity: str) -> SourceRow:
    source = session.scalar(select(SourceRow).where(SourceRow.id == source_id, SourceRow.entity == entity))
    if source is None:
        raise NotFoundError(
            f"There are no trajectories of {source_id}: it is no training job or log entry with trajectories, or it "
            "belongs to another entity.",
            "trajectory_not_found",
            "trajectory_id",
        )
    if source.state in GONE:
        raise GoneError(
            f"The trajectories of {'training job' if source.kind == 'job' else 'log entry'} {source_id} were removed. "
            f"{source.reason}",
            "trajectory_removed",
            "trajectory_id",
        )
    return source


def _missing_trajectory(source: SourceRow, place: Place) -> NotFoundError:
    whose = f"Group {place[1]} of {source.id} has no trajectory {place[2]}"
    if source.state == "pending":
        return NotFoundError(
            f"{whose} in the index yet: its trajectories are still being indexed. Try again in a moment.",
            "trajectory_not_indexed",
            "trajectory_id",
        )
    if source.state == "failed":
        return NotFoundError(
            f"{whose} in the index, which isn't complete: {source.reason}", "trajectory_not_indexed", "trajectory_id"
        )
    return NotFoundError(f"{whose}.", "trajectory_not_found", "trajectory_id")
