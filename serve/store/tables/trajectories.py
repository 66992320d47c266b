"""The tables of the index of trajectories. Their text stays in the payloads of jobs and logs alone."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from tandem.serve.store.tables.training import _ID, _NAME, NEVER, Table

_UNFINISHED = text("state IN ('pending', 'unkept', 'removing')")
KEPT = ("pending", "indexed", "failed")
"""The states of sources whose payload is there and may be shown."""
GONE = ("unkept", "removing", "removed")
"""The states of sources whose trajectories are gone, or never shown, with a reason."""


class SourceRow(Table):
    """Where trajectories come from: the payload of a training job or of a log entry.

    It is added together with the job's or the log's row, so that a source that waits to be indexed is never forgotten.
    """

    __tablename__ = "trajectory_sources"
    __table_args__ = (
        Index("trajectory_sources_entity", "entity", "number"),
        Index("trajectory_sources_model", "model_id", "number"),
        Index(
            "trajectory_sources_unfinished",
            "number",
            sqlite_where=_UNFINISHED,
            postgresql_where=_UNFINISHED,
        ),
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    """The id of the job or the log entry."""
    kind: Mapped[str] = mapped_column(String(8))
    """job or log."""
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    entity: Mapped[str] = mapped_column(_NAME)
    split: Mapped[str] = mapped_column(_NAME)
    """Of a log entry; "train" for a job."""
    payload_key: Mapped[str] = mapped_column(_NAME)
    state: Mapped[str] = mapped_column(String(16))
    """pending, indexed, failed (it can't be indexed), unkept (its project keeps no trajectories), removing, removed."""
    reason: Mapped[str | None] = mapped_column(Text)
    """Why it failed, or why its trajectories are gone."""
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    """The number of claims; fences the writes of earlier claims."""
    lease_expires_at: Mapped[datetime] = mapped_column(default=NEVER)
    num_groups: Mapped[int] = mapped_column(Integer, default=0)
    """Groups that are in the index so far."""
    num_trajectories: Mapped[int] = mapped_column(Integer, default=0)
    """Rows that are in the index so far: trajectories, and rollouts that failed without one."""
    num_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Of the payload as it is stored; 0 until the first attempt to index it."""
    created_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]


class GroupRow(Table):
    """A trajectory group with statistics of its rewards."""

    __tablename__ = "trajectory_groups"

    source_number: Mapped[int] = mapped_column(ForeignKey("trajectory_sources.number"), primary_key=True)
    group_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    size: Mapped[int] = mapped_column(Integer)
    """Trajectories, without the rollouts that failed."""
    num_failed: Mapped[int] = mapped_column(Integer)
    reward_mean: Mapped[float | None] = mapped_column(Float)
    reward_std_dev: Mapped[float | None] = mapped_column(Float)
    """Exactly 0 if the rewards differ by rounding only."""
    reward_min: Mapped[float | None] = mapped_column(Float)
    reward_max: Mapped[float | None] = mapped_column(Float)
    num_tokens: Mapped[int] = mapped_column(BigInteger)
    """Sampled tokens."""
    not_trained: Mapped[str | None] = mapped_column(String(32))
    """Why nothing of the group can train, as far as the payload alone tells: a key of `accounting.REASONS`."""
    start: Mapped[int] = mapped_column(BigInteger)
    """The offset of its JSON in the uncompressed payload, in bytes."""
    num_bytes: Mapped[int] = mapped_column(BigInteger)


class TrajectoryRow(Table):
    """A trajectory, or a rollout that failed without one; the latter has no reward and counts after the former."""

    __tablename__ = "trajectories"
    __table_args__ = (
        Index("trajectories_entity_reward", "entity", "reward", "source_number", "group_index", "trajectory_index"),
        Index("trajectories_model_reward", "model_id", "reward", "source_number", "group_index", "trajectory_index"),
    )

    source_number: Mapped[int] = mapped_column(ForeignKey("trajectory_sources.number"), primary_key=True)
    group_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    trajectory_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    entity: Mapped[str] = mapped_column(_NAME)
    model_id: Mapped[str] = mapped_column(_ID)
    reward: Mapped[float | None] = mapped_column(Float)
    first_version: Mapped[int | None] = mapped_column(Integer)
    """The steps of the oldest and the newest policy version that sampled it, if they are known."""
    last_version: Mapped[int | None] = mapped_column(Integer)
    num_turns: Mapped[int] = mapped_column(Integer)
    """Turns that the policy sampled."""
    num_tokens: Mapped[int] = mapped_column(BigInteger)
    """Sampled tokens."""
    num_tool_calls: Mapped[int] = mapped_column(Integer)
    error: Mapped[str | None] = mapped_column(Text)
    """The beginning of its exception."""
    numbers: Mapped[dict[str, Any]] = mapped_column("metrics", JSON)
    """Its metrics: finite numbers by name."""
    notes: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    """Its metadata: strings by name."""
    start: Mapped[int] = mapped_column(BigInteger)
    """The offset of its JSON in the uncompressed payload, in bytes."""
    num_bytes: Mapped[int] = mapped_column(BigInteger)
