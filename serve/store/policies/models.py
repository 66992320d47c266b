"""Models: register, list and delete them."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.cluster.artifacts import is_dataset
from tandem.serve.errors import ConflictError, NotFoundError
from tandem.serve.store.database import Database, position
from tandem.serve.store.tables.tinker import RunRow
from tandem.serve.store.tables.training import NO_PAYLOAD, JobRow, LogRow, ModelRow, VersionRow, is_open
from tandem.serve.store.training.events import end
from tandem.serve.store.training.open_runs import unload_run_of
from tandem.serve.store.uploads.trajectory_index import forget_sources

MAX_NAMED = 10
"""Versions that a message names."""


@dataclass(frozen=True)
class DeletedModel:
    """The remains of a deleted model. Nothing refers to the blobs any more; datasets stay."""

    num_checkpoints: int
    blob_keys: tuple[str, ...]
    job_ids: tuple[str, ...]


@dataclass(frozen=True)
class OwnLora:
    """LoRA settings of a model that aren't those of its base model, and the version 0 that was made with them."""

    settings: Mapping[str, Any]
    initial_digest: str


class Models:
    """For a caller, models of other entities don't exist."""

    def __init__(self, database: Database):
        self._database = database

    def add(
        self,
        entity: str,
        project: str,
        name: str,
        base_model: str,
        return_existing: bool,
        own_lora: OwnLora | None = None,
    ) -> ModelRow:
        """Register a model, or return the existing one of that name. `own_lora` None: the settings of the base model.

        Raises ConflictError if it exists without `return_existing`, or is on another base model. Whether an existing
        one has the same LoRA settings is left to the caller, who knows those of the base model.
        """
        model = new_model(entity, project, name, base_model, self._database.now())
        if own_lora is not None:
            model.lora, model.initial_digest = dict(own_lora.settings), own_lora.initial_digest
        try:
            with self._database.write() as session:
                session.add(model)
            return model
        except IntegrityError:
            with self._database.read() as session:
                existing = find_by_name(session, entity, project, name)
        if existing is None:  # it was deleted just now
            return self.add(entity, project, name, base_model, return_existing, own_lora)
        check_base_model(existing, base_model)
        if not return_existing:
            raise already_exists(existing)
        return existing

    def find(self, entity: str, project: str, name: str) -> ModelRow | None:
        """Return the live model of this name."""
        with self._database.read() as session:
            return find_by_name(session, entity, project, name)

    def get(self, model_id: str, entity: str) -> ModelRow:
        """Return a model. Raises NotFoundError."""
        with self._database.read() as session:
            return find_model(session, model_id, entity)

    def client_runs(self, model_ids: Collection[str]) -> dict[str, str]:
        """Return the run of each of these models that a client of the Tinker API trains, by the model."""
        query = select(RunRow.model_id, RunRow.id).where(RunRow.model_id.in_(model_ids))
        with self._database.read() as session:
            return {model_id: run_id for model_id, run_id in session.execute(query)}

    def page(
        self,
        entity: str,
        limit: int | None = None,
        after: str | None = None,
        newest_first: bool = False,
        project: str | None = None,
        name: str | None = None,
        containing: str | None = None,
    ) -> Sequence[ModelRow]:
        """Return models of the entity in order of registration, those after the model `after`.

        `containing`: those whose project/name contains this text, in any case.
        Raises UnknownCursorError for `after`.
        """
        query = select(ModelRow).where(ModelRow.entity == entity, ModelRow.deleted_at.is_(None))
        if project:
            query = query.where(ModelRow.project == project)
        if name:
            query = query.where(ModelRow.name == name)
        if containing:
            query = query.where((ModelRow.project + "/" + ModelRow.name).icontains(containing, autoescape=True))
        query = query.order_by(ModelRow.number.desc() if newest_first else ModelRow.number).limit(limit)
        with self._database.read() as session:
            if after:
                number = position(session, ModelRow, after)
                query = query.where(ModelRow.number < number if newest_first else ModelRow.number > number)
            return session.scalars(query).all()

    def delete(self, model_id: str, entity: str) -> DeletedModel:
        """Delete a model with its versions and logs. Its open jobs fail; running ones are fenced.

        So do the waiting calls of the client that trains it, and its checkpoints are deleted.

        Raises NotFoundError, and ConflictError if one of its versions is kept.
        """
        now = self._database.now()
        with self._database.write() as session:
            model = find_model(session, model_id, entity, lock=True)
            body_keys = unload_run_of(session, model, now)
            live = select(VersionRow).where(VersionRow.model_id == model_id, VersionRow.deleted_at.is_(None))
            versions = session.scalars(live.with_for_update()).all()
            check_not_kept(model, versions, "model_id")
            model.deleted_at = now
            for version in versions:
                version.deleted_at = now
            jobs = select(JobRow).where(JobRow.model_id == model_id).order_by(JobRow.number)
            for job in session.scalars(jobs.where(is_open()).with_for_update()):
                end(session, job, "failed", now, f"Model {model.path} was deleted while the job was {job.state}.")
            logs = session.scalars(select(LogRow).where(LogRow.model_id == model_id)).all()
            all_jobs = session.scalars(jobs).all()
            keys = [job.payload_key for job in all_jobs] + [log.payload_key for log in logs]
            blob_keys = [key for key in keys if key != NO_PAYLOAD and not is_dataset(key)] + body_keys
            for log in logs:
                session.delete(log)
            forget_sources(session, model_id, now)
        return DeletedModel(len(versions), tuple(blob_keys), tuple(job.id for job in all_jobs))


def check_not_kept(model: ModelRow, versions: Sequence[VersionRow], param: str) -> None:
    """Raise ConflictError if one of the versions, which are to be deleted, is kept."""
    kept = sorted(version.step for version in versions if version.kept_at is not None)
    if kept:
        more = f" and {len(kept) - MAX_NAMED} more" if len(kept) > MAX_NAMED else ""
        raise ConflictError(
            f"Version {', '.join(map(str, kept[:MAX_NAMED]))}{more} of {model.path} is kept, so nothing was deleted. "
            f"Release it first: DELETE /v1/preview/models/{model.id}/checkpoints/{kept[0]}/keep.",
            "version_kept",
            param,
        )


def new_model(entity: str, project: str, name: str, base_model: str, now: datetime) -> ModelRow:
    return ModelRow(
        id=str(uuid.uuid4()), entity=entity, project=project, name=name, base_model=base_model, created_at=now
    )


def check_base_model(existing: ModelRow, base_model: str) -> None:
    """Raise ConflictError if the model is on another base model."""
    if existing.base_model != base_model:
        raise ConflictError(
            f"Model {existing.path} already exists, on base model {existing.base_model}. "
            "Choose another name, or delete that model first.",
            "model_exists",
            "base_model",
        )


def already_exists(existing: ModelRow) -> ConflictError:
    return ConflictError(
        f"Model {existing.path} already exists, with id {existing.id}. "
        "Send return_existing: true to get it, or choose another name.",
        "model_exists",
        "name",
    )


def find_model(session: Session, model_id: str, entity: str, lock: bool = False) -> ModelRow:
    """Return the live model with this id, if the entity owns it. Raises NotFoundError."""
    query = select(ModelRow).where(ModelRow.id == model_id, ModelRow.entity == entity, ModelRow.deleted_at.is_(None))
    model = session.scalar(query.with_for_update() if lock else query)
    if model is None:
        raise NotFoundError(
            f"There is no model {model_id}: it was deleted, the id is wrong, or it belongs to another entity.",
            "model_not_found",
            "model_id",
        )
    return model


def find_by_name(session: Session, entity: str, project: str, name: str) -> ModelRow | None:
    """Return the live model of this name."""
    return session.scalar(
        select(ModelRow).where(
            ModelRow.entity == entity,
            ModelRow.project == project,
            ModelRow.name == name,
            ModelRow.deleted_at.is_(None),
        )
    )
