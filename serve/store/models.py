"""Models and the trajectories logged for them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.serve.errors import ConflictError, NotFoundError
from tandem.serve.store.database import Database, position
from tandem.serve.store.events import end
from tandem.serve.store.tables import JobRow, LogRow, ModelRow, VersionRow, is_open


@dataclass(frozen=True)
class DeletedModel:
    """What went with a model. Nothing refers to the blobs any more."""

    num_checkpoints: int
    blob_keys: tuple[str, ...]
    job_ids: tuple[str, ...]


def find_model(session: Session, model_id: str, entity: str, lock: bool = False) -> ModelRow:
    """The live model with this id, if the entity owns it. Raises NotFoundError."""
    query = select(ModelRow).where(ModelRow.id == model_id, ModelRow.entity == entity, ModelRow.deleted_at.is_(None))
    model = session.scalar(query.with_for_update() if lock else query)
    if model is None:
        raise NotFoundError(
            f"There is no model {model_id}. It was deleted, the id is wrong, or it belongs to another entity.",
            "model_not_found",
            "model_id",
        )
    return model


def find_by_name(session: Session, entity: str, project: str, name: str) -> ModelRow | None:
    """The live model of this name."""
    return session.scalar(
        select(ModelRow).where(
            ModelRow.entity == entity,
            ModelRow.project == project,
            ModelRow.name == name,
            ModelRow.deleted_at.is_(None),
        )
    )


class ModelTable(Database):
    """Queries and changes of models. Other entities' models don't exist for a caller."""

    def add_model(self, entity: str, project: str, name: str, base_model: str, return_existing: bool) -> ModelRow:
        """Registers a model, or returns the one of that name.

        Raises ConflictError when it exists and may not be returned, or is on another base model.
        """
        model = ModelRow(
            id=str(uuid.uuid4()),
            entity=entity,
            project=project,
            name=name,
            base_model=base_model,
            created_at=self._clock(),
        )
        try:
            with self._write() as session:
                session.add(model)
            return model
        except IntegrityError:
            with self._read() as session:
                existing = find_by_name(session, entity, project, name)
        if existing is None:  # it was deleted at this very moment
            return self.add_model(entity, project, name, base_model, return_existing)
        if existing.base_model != base_model:
            raise ConflictError(
                f"Model {existing.path} exists already, on base model {existing.base_model}. "
                "Choose another name, or delete that model first.",
                "model_exists",
                "base_model",
            )
        if not return_existing:
            raise ConflictError(
                f"Model {existing.path} exists already, with id {existing.id}. "
                "Send return_existing: true to get it, or choose another name.",
                "model_exists",
                "name",
            )
        return existing

    def model(self, model_id: str, entity: str) -> ModelRow:
        """Raises NotFoundError."""
        with self._read() as session:
            return find_model(session, model_id, entity)

    def models(
        self,
        entity: str,
        limit: int | None = None,
        after: str | None = None,
        newest_first: bool = False,
        project: str | None = None,
        name: str | None = None,
    ) -> Sequence[ModelRow]:
        """The entity's models in the order of their registration, those past the model `after`."""
        query = select(ModelRow).where(ModelRow.entity == entity, ModelRow.deleted_at.is_(None))
        if project:
            query = query.where(ModelRow.project == project)
        if name:
            query = query.where(ModelRow.name == name)
        query = query.order_by(ModelRow.number.desc() if newest_first else ModelRow.number).limit(limit)
        with self._read() as session:
            if after:
                number = position(session, ModelRow, after)
                query = query.where(ModelRow.number < number if newest_first else ModelRow.number > number)
            return session.scalars(query).all()

    def delete_model(self, model_id: str, entity: str) -> DeletedModel:
        """Deletes a model with its versions and logs, and ends its open jobs: they fail, and running ones are fenced.

        Raises NotFoundError.
        """
        now = self._clock()
        with self._write() as session:
            model = find_model(session, model_id, entity, lock=True)
            model.deleted_at = now
            versions = session.scalars(
                select(VersionRow).where(VersionRow.model_id == model_id, VersionRow.deleted_at.is_(None))
            ).all()
            for version in versions:
                version.deleted_at = now
            jobs = select(JobRow).where(JobRow.model_id == model_id).order_by(JobRow.number)
            for job in session.scalars(jobs.where(is_open()).with_for_update()):
                end(session, job, "failed", now, f"Model {model.path} was deleted while the job was {job.state}.")
            logs = session.scalars(select(LogRow).where(LogRow.model_id == model_id)).all()
            all_jobs = session.scalars(jobs).all()
            blob_keys = [row.payload_key for row in (*all_jobs, *logs)]
            for log in logs:
                session.delete(log)
        return DeletedModel(len(versions), tuple(blob_keys), tuple(job.id for job in all_jobs))

    def add_log(
        self, log_id: str, model_id: str, entity: str, split: str, payload_key: str, metrics: Mapping[str, float]
    ) -> LogRow:
        """Keeps what a client logged. Raises NotFoundError."""
        with self._write() as session:
            find_model(session, model_id, entity, lock=True)
            row = LogRow(
                id=log_id,
                model_id=model_id,
                split=split,
                payload_key=payload_key,
                metrics=dict(metrics),
                created_at=self._clock(),
            )
            session.add(row)
        return row

    def logs(
        self, model_id: str, entity: str, limit: int, after: str | None = None, split: str | None = None
    ) -> Sequence[LogRow]:
        """What was logged for a model, oldest first, after the entry `after`. Raises NotFoundError."""
        query = select(LogRow).where(LogRow.model_id == model_id).order_by(LogRow.number).limit(limit)
        if split:
            query = query.where(LogRow.split == split)
        with self._read() as session:
            find_model(session, model_id, entity)
            if after:
                query = query.where(LogRow.number > position(session, LogRow, after))
            return session.scalars(query).all()
