"""The tables of the Tinker API: sessions of clients, their runs with calls and checkpoints, and samplers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from tandem.serve.store.tables.training import NEVER, Table

_ID = String(36)
_RUN = String(64)
_NAME = String(128)
_DIGEST = String(64)
_KIND = String(24)
_JSON_OR_NULL = JSON(none_as_null=True)
_LIVE = text("deleted_at IS NULL")
_UNANSWERED = text("answered_at IS NULL")

WEIGHTS, SAMPLER_WEIGHTS, EXTERNAL_WEIGHTS = "weights", "sampler_weights", "external_weights"
ANCHOR, UNNAMED = "anchor", "unnamed"
"""Kinds of checkpoints. The first three are parts of their paths; clients see no others."""


class SessionRow(Table):
    """A session: one client process from its start to its end."""

    __tablename__ = "tinker_sessions"
    __table_args__ = (
        UniqueConstraint("entity", "idempotency_key", name="tinker_sessions_idempotency"),
        Index("tinker_sessions_entity", "entity", "number"),
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    entity: Mapped[str] = mapped_column(_NAME)
    key_id: Mapped[str | None] = mapped_column(_ID)
    """The key that opened the session."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    """Of the request that opened the session."""
    tags: Mapped[list[str]] = mapped_column(JSON)
    user_metadata: Mapped[dict[str, Any] | None] = mapped_column(_JSON_OR_NULL)
    sdk_version: Mapped[str] = mapped_column(_NAME)
    project: Mapped[str | None] = mapped_column(_NAME)
    """Of the models of its runs; None: `tinker.project`."""
    display_name: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    """When the client was last heard of."""
    finished_at: Mapped[datetime | None]
    finish_reason: Mapped[str | None] = mapped_column(_KIND)
    """What the client said at its end: success, errored or interrupted."""
    finish_detail: Mapped[str | None] = mapped_column(Text)


class RunRow(Table):
    """A training client's model, and how far its calls have taken effect."""

    __tablename__ = "tinker_runs"
    __table_args__ = (
        UniqueConstraint("session_id", "model_seq_id", name="tinker_runs_of_session"),
        Index("tinker_runs_entity", "entity", "number"),
        Index("tinker_runs_anchor", "anchor_digest"),
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_RUN, unique=True)
    """{session_id}:train:{model_seq_id}"""
    session_id: Mapped[str] = mapped_column(ForeignKey("tinker_sessions.id"))
    model_seq_id: Mapped[int]
    entity: Mapped[str] = mapped_column(_NAME)
    key_id: Mapped[str | None] = mapped_column(_ID)
    base_model: Mapped[str] = mapped_column(_NAME)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), unique=True)
    flags: Mapped[dict[str, Any]]
    """What the client asked for beside the rank: seed, train_mlp, train_attn, train_unembed."""
    user_metadata: Mapped[dict[str, Any] | None] = mapped_column(_JSON_OR_NULL)
    request_sha256: Mapped[str] = mapped_column(_DIGEST)
    """Of what was asked for, so that a repeat can be told from another request with the same number."""
    start_path: Mapped[str | None] = mapped_column(Text)
    """The checkpoint that the run was created from, None for a new adapter."""
    parent: Mapped[dict[str, Any] | None] = mapped_column(_JSON_OR_NULL)
    """The version that the present state comes from: model_id, step."""
    created_at: Mapped[datetime]
    last_request_at: Mapped[datetime]
    unloaded_at: Mapped[datetime | None]
    """From then on, the run takes no calls, and its model may be trained by jobs."""
    anchor_digest: Mapped[str] = mapped_column(_DIGEST)
    anchor_seq: Mapped[int]
    anchor_has_optimizer: Mapped[bool]
    applied_seq: Mapped[int] = mapped_column(default=0)
    """The last call that has ended in its turn. Calls behind it may have been refused already."""
    attempt: Mapped[int] = mapped_column(default=0)
    """The number of claims; fences the writes of earlier claims."""
    owner: Mapped[str | None] = mapped_column(String(255))
    lease_expires_at: Mapped[datetime] = mapped_column(default=NEVER)
    waiting_for: Mapped[str | None] = mapped_column(Text)
    """The resource that the run needs before its next call can be executed."""


class CallRow(Table):
    """A call of a run, or the number of one that didn't arrive in time."""

    __tablename__ = "tinker_calls"
    __table_args__ = (
        Index("tinker_calls_waiting", "run_id", "seq", sqlite_where=_UNANSWERED, postgresql_where=_UNANSWERED),
        Index("tinker_calls_body", "body_key"),
        Index("tinker_calls_answered", "answered_at"),
    )

    run_id: Mapped[str] = mapped_column(ForeignKey("tinker_runs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(_KIND)
    """A `CallKind`."""
    body_sha256: Mapped[str] = mapped_column(_DIGEST)
    body_key: Mapped[str | None] = mapped_column(String(255))
    """The blob of the body, None once nothing needs it."""
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    options: Mapped[dict[str, Any]]
    digest: Mapped[str | None] = mapped_column(_DIGEST)
    """The checkpoint that the call loads; its files are kept while the call waits."""
    arrived_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]
    result: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    """None for a failed call, and once the result isn't kept any more."""
    media_type: Mapped[str | None] = mapped_column(_NAME)
    error: Mapped[str | None] = mapped_column(Text)
    category: Mapped[str | None] = mapped_column(String(16))
    """Of a failed call: user or server."""


def is_unanswered(call: type[CallRow] = CallRow) -> ColumnElement[bool]:
    """True for a call that waits. There is an index of them."""
    return call.answered_at.is_(None)


class RunCheckpointRow(Table):
    """A durable checkpoint of a run: named by the client, or an anchor that nobody has named.

    A checkpoint for sampling is a version of the run's model as well, and is there as long as the version is.
    """

    __tablename__ = "tinker_checkpoints"
    __table_args__ = (
        Index(
            "tinker_checkpoints_live",
            *("run_id", "kind", "name"),
            unique=True,
            sqlite_where=_LIVE,
            postgresql_where=_LIVE,
        ),
        Index("tinker_checkpoints_digest", "digest"),
        Index("tinker_checkpoints_entity", "entity", "number"),
        Index("tinker_checkpoints_version", "model_id", "step"),
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("tinker_runs.id"))
    model_id: Mapped[str] = mapped_column(_ID)
    entity: Mapped[str] = mapped_column(_NAME)
    kind: Mapped[str] = mapped_column(_KIND)
    """weights, sampler_weights, anchor, or unnamed: a version for one sampler, with a limited life."""
    name: Mapped[str] = mapped_column(_NAME)
    seq: Mapped[int]
    """The last call whose effect it contains."""
    digest: Mapped[str] = mapped_column(_DIGEST)
    has_optimizer: Mapped[bool]
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int | None]
    """Of the version, for a checkpoint for sampling."""
    parent: Mapped[dict[str, Any] | None] = mapped_column(_JSON_OR_NULL)
    """The version that the weights come from: model_id, step."""
    user_metadata: Mapped[dict[str, Any] | None] = mapped_column(_JSON_OR_NULL)
    public: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    """The row stays until the files are gone."""

    @property
    def path(self) -> str:
        """Its address for clients."""
        return f"tinker://{self.run_id}/{self.kind}/{self.name}"


class SamplerRow(Table):
    """A sampling client, pinned to one checkpoint."""

    __tablename__ = "tinker_samplers"
    __table_args__ = (
        UniqueConstraint("session_id", "seq", name="tinker_samplers_of_session"),
        Index("tinker_samplers_digest", "digest"),
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_RUN, unique=True)
    """{session_id}:sample:{seq}"""
    session_id: Mapped[str] = mapped_column(ForeignKey("tinker_sessions.id"))
    seq: Mapped[int] = mapped_column(BigInteger)
    entity: Mapped[str] = mapped_column(_NAME)
    key_id: Mapped[str | None] = mapped_column(_ID)
    base_model: Mapped[str] = mapped_column(_NAME)
    path: Mapped[str | None] = mapped_column(Text)
    """The checkpoint's path, None for the base model and for a checkpoint without a name."""
    model_id: Mapped[str | None] = mapped_column(_ID)
    """None for the base model."""
    step: Mapped[int | None]
    """Of the model's version, if the checkpoint is one."""
    digest: Mapped[str] = mapped_column(_DIGEST)
    created_at: Mapped[datetime]
