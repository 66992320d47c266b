"""Checkpoints by their addresses: those of runs, and the versions of any model of the entity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session

from tandem.serve.errors import NotFoundError
from tandem.serve.names import quoted
from tandem.serve.store.database import Database
from tandem.serve.store.policies.models import check_not_kept, find_model
from tandem.serve.store.policies.versions import need_version
from tandem.serve.store.tables.tinker import EXTERNAL_WEIGHTS, SAMPLER_WEIGHTS, WEIGHTS, RunCheckpointRow, RunRow
from tandem.serve.store.tables.training import ModelRow, VersionRow
from tandem.serve.tinker.store.paths import CheckpointPath, Kind, kind_of, parse_path


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that an address means."""

    path: str
    kind: Kind
    digest: str
    entity: str
    """Its owner. Others see it only if it is public."""
    model_id: str
    model_path: str
    """entity/project/name"""
    base_model: str
    lora: Mapping[str, Any] | None
    """The model's own LoRA settings; None: those of its base model."""
    initial_digest: str | None
    """The model's own version 0; None: that of the base model."""
    has_optimizer: bool
    run_id: str | None = None
    """None for a version of a model that isn't addressed by a run."""
    flags: Mapping[str, Any] | None = None
    """What the run's client asked for: seed, train_mlp, train_attn, train_unembed."""
    step: int | None = None
    """Of the model's version, if the checkpoint is one."""
    parent: Mapping[str, Any] | None = None
    """The version that it comes from, or that it is: model_id, step."""
    num_bytes: int | None = None
    public: bool = False
    created_at: datetime | None = None
    expires_at: datetime | None = None
    user_metadata: Mapping[str, Any] | None = None


class Checkpoints:
    """For a caller, checkpoints of other entities don't exist unless they are public."""

    def __init__(self, database: Database):
        self._database = database

    def resolve(self, entity: str, path: str, place: str = "path") -> Checkpoint:
        """Return the checkpoint at an address. Raises BadRequestError, NotFoundError, GoneError or UnavailableError."""
        address = parse_path(path, place)
        with self._database.read() as session:
            return find_checkpoint(session, entity, address, place, self._database.now())

    def page(
        self, entity: str, limit: int, offset: int = 0, run_id: str | None = None
    ) -> tuple[Sequence[RunCheckpointRow], int]:
        """Return checkpoints of an entity or of one of its runs, the newest first, and how many there are."""
        wanted = [RunCheckpointRow.entity == entity, *are_there(self._database.now())]
        if run_id is not None:
            wanted.append(RunCheckpointRow.run_id == run_id)
        query = select(RunCheckpointRow).where(*wanted).order_by(RunCheckpointRow.number.desc())
        count = select(func.count()).select_from(RunCheckpointRow).where(*wanted)
        with self._database.read() as session:
            return session.scalars(query.limit(limit).offset(offset)).all(), session.scalar(count) or 0

    def newest(self, run_ids: Sequence[str]) -> dict[tuple[str, str], RunCheckpointRow]:
        """Return the newest checkpoint of each of these runs by run and kind."""
        now = self._database.now()
        numbers = (
            select(func.max(RunCheckpointRow.number))
            .where(RunCheckpointRow.run_id.in_(run_ids), *are_there(now))
            .group_by(RunCheckpointRow.run_id, RunCheckpointRow.kind)
        )
        with self._database.read() as session:
            rows = session.scalars(select(RunCheckpointRow).where(RunCheckpointRow.number.in_(numbers)))
            return {(row.run_id, row.kind): row for row in rows}

    def delete(self, entity: str, path: str) -> None:
        """Delete a checkpoint, with its version if it is one.

        Raises BadRequestError and NotFoundError, and ConflictError if a user keeps the version.
        """
        address, now = parse_path(path), self._database.now()
        with self._database.write() as session:
            row = _own(session, entity, address, now)
            version = _lock_version(session, row)
            if version is not None:
                model, version_row = version
                check_not_kept(model, [version_row], "checkpoint_id")
                version_row.deleted_at = version_row.deleted_at or now
            row.deleted_at = now

    def set_ttl(self, entity: str, path: str, ttl_s: int | None) -> RunCheckpointRow:
        """Let a checkpoint expire this long after now; None: never. Raises BadRequestError and NotFoundError."""
        address, now = parse_path(path), self._database.now()
        with self._database.write() as session:
            row = _own(session, entity, address, now)
            row.expires_at = None if ttl_s is None else now + timedelta(seconds=ttl_s)
            return row

    def publish(self, entity: str, path: str, is_public: bool = True) -> RunCheckpointRow:
        """Let other entities read a checkpoint, or no longer. Raises BadRequestError and NotFoundError."""
        address = parse_path(path)
        with self._database.write() as session:
            row = _own(session, entity, address, self._database.now())
            row.public = is_public
            return row


def find_checkpoint(
    session: Session, entity: str, address: CheckpointPath, place: str, now: datetime, lock: bool = False
) -> Checkpoint:
    """Return the checkpoint at an address.

    With `lock`, its row stays locked until the transaction ends, so that its files aren't deleted in between. Raises
    NotFoundError, GoneError or UnavailableError.
    """
    query = (
        select(RunCheckpointRow, ModelRow, RunRow)
        .join(ModelRow, ModelRow.id == RunCheckpointRow.model_id)
        .join(RunRow, RunRow.id == RunCheckpointRow.run_id)
        .where(*_addressed(address, now))
        .where(or_(RunCheckpointRow.entity == entity, RunCheckpointRow.public))
    )
    found = session.execute(query.with_for_update(of=RunCheckpointRow) if lock else query).first()
    if found is not None:
        row, model, run = found
        if lock and row.step is not None:
            need_version(session, model, row.step, place, lock=True)
        version = None if row.step is None else session.get(VersionRow, (row.model_id, row.step))
        return _of_run(row, model, run, row.has_optimizer and (version is None or _has_optimizer(version)))
    if address.step is not None and ":" not in address.owner:
        return _of_model(session, entity, address, address.step, place, lock)
    raise _no_checkpoint(address, place)


def _of_run(row: RunCheckpointRow, model: ModelRow, run: RunRow, has_optimizer: bool) -> Checkpoint:
    own_version = None if row.step is None else {"model_id": row.model_id, "step": row.step}
    return Checkpoint(
        path=row.path,
        kind=kind_of(row.kind),
        digest=row.digest,
        entity=row.entity,
        model_id=row.model_id,
        model_path=model.path,
        base_model=model.base_model,
        lora=model.lora,
        initial_digest=model.initial_digest,
        has_optimizer=has_optimizer,
        run_id=row.run_id,
        flags=run.flags,
        step=row.step,
        parent=own_version or row.parent,
        num_bytes=row.num_bytes,
        public=row.public,
        created_at=row.created_at,
        expires_at=row.expires_at,
        user_metadata=row.user_metadata,
    )


def _of_model(session: Session, entity: str, address: CheckpointPath, step: int, place: str, lock: bool) -> Checkpoint:
    model = find_model(session, address.owner, entity)
    version = need_version(session, model, step, place, lock)
    row = session.get(VersionRow, (model.id, version.step)) if version.step else None
    return Checkpoint(
        path=str(address),
        kind=address.kind,
        digest=version.digest,
        entity=model.entity,
        model_id=model.id,
        model_path=model.path,
        base_model=model.base_model,
        lora=model.lora,
        initial_digest=model.initial_digest,
        has_optimizer=row is not None and _has_optimizer(row),
        step=version.step,
        parent={"model_id": model.id, "step": version.step},
        created_at=row.created_at if row else model.created_at,
    )


def _has_optimizer(version: VersionRow) -> bool:
    return version.optimizer_kind is not None and version.optimizer_expired_at is None


def _own(session: Session, entity: str, address: CheckpointPath, now: datetime) -> RunCheckpointRow:
    """Return the row of a run's checkpoint, locked. Raises NotFoundError."""
    query = select(RunCheckpointRow).where(*_addressed(address, now), RunCheckpointRow.entity == entity)
    row = session.scalar(query.with_for_update(of=RunCheckpointRow))
    if row is None:
        raise _no_checkpoint(address, "path")
    return row


def _lock_version(session: Session, row: RunCheckpointRow) -> tuple[ModelRow, VersionRow] | None:
    if row.step is None:
        return None
    query = select(ModelRow, VersionRow).join(VersionRow, VersionRow.model_id == ModelRow.id)
    query = query.where(VersionRow.model_id == row.model_id, VersionRow.step == row.step)
    found = session.execute(query.with_for_update(of=VersionRow)).first()
    return None if found is None else (found[0], found[1])


def _addressed(address: CheckpointPath, now: datetime) -> list[ColumnElement[bool]]:
    row = RunCheckpointRow
    return [row.run_id == address.owner, row.kind == address.kind, row.name == address.name, *are_there(now)]


def are_there(now: datetime) -> list[ColumnElement[bool]]:
    """True for checkpoints that clients see: named, not deleted, not expired, and with a live version if it is one."""
    row = RunCheckpointRow
    version: Select[int] = select(VersionRow.step).where(
        VersionRow.model_id == row.model_id, VersionRow.step == row.step, VersionRow.deleted_at.is_(None)
    )
    return [
        row.kind.in_((WEIGHTS, SAMPLER_WEIGHTS, EXTERNAL_WEIGHTS)),
        row.deleted_at.is_(None),
        or_(row.expires_at.is_(None), row.expires_at > now),
        or_(row.step.is_(None), version.exists()),
    ]


def _no_checkpoint(address: CheckpointPath, place: str) -> NotFoundError:
    return NotFoundError(
        f"There is no checkpoint {quoted(str(address))}: it was deleted or has expired, the address is wrong, or it "
        "belongs to another entity.",
        "checkpoint_not_found",
        place,
    )
