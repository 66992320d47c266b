"""Reads for the live state of the service: the queue, and which jobs and versions are a caller's own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from tandem.serve.store.database import Database
from tandem.serve.store.tables.training import JobRow, ModelRow, VersionRow, is_open

MAX_DIGESTS = 500
"""Of one query; databases limit the parameters."""


@dataclass(frozen=True)
class OpenJobs:
    """The jobs of a base model in one state."""

    base_model: str
    state: str
    count: int
    oldest: datetime
    """When the oldest of them was accepted."""


@dataclass(frozen=True)
class OwnVersion:
    """A version of the caller's, by its digest."""

    digest: str
    model_id: str
    model: str
    """Its name in completion requests, without the step."""
    step: int


class LiveState:
    def __init__(self, database: Database):
        self._database = database

    def now(self) -> datetime:
        return self._database.now()

    def open_jobs(self) -> list[OpenJobs]:
        """Return the queued and the running jobs of each base model that has some."""
        query = (
            select(ModelRow.base_model, JobRow.state, func.count(), func.min(JobRow.created_at))
            .select_from(JobRow)
            .join(JobRow.model)
            .where(is_open())
            .group_by(ModelRow.base_model, JobRow.state)
        )
        with self._database.read() as session:
            return [OpenJobs(*row) for row in session.execute(query)]

    def own_jobs(self, job_ids: Collection[str], entity: str) -> dict[str, str]:
        """Return those of the jobs that are the entity's, with the ids of their models."""
        if not job_ids:
            return {}
        query = select(JobRow.id, JobRow.model_id).join(JobRow.model)
        with self._database.read() as session:
            rows = session.execute(query.where(JobRow.id.in_(job_ids), ModelRow.entity == entity)).all()
        return {job_id: model_id for job_id, model_id in rows}

    def own_versions(self, digests: Collection[str], entity: str) -> list[OwnVersion]:
        """Return the entity's live versions among these digests, the newest step of each model and digest."""
        found: dict[tuple[str, str], OwnVersion] = {}
        listed = sorted(set(digests))
        with self._database.read() as session:
            for start in range(0, len(listed), MAX_DIGESTS):
                part = listed[start : start + MAX_DIGESTS]
                query = (
                    select(VersionRow.digest, VersionRow.step, ModelRow)
                    .join(ModelRow, ModelRow.id == VersionRow.model_id)
                    .where(VersionRow.digest.in_(part), VersionRow.deleted_at.is_(None))
                    .where(ModelRow.entity == entity, ModelRow.deleted_at.is_(None))
                    .order_by(VersionRow.step)
                )
                for digest, step, model in session.execute(query):
                    found[model.id, digest] = OwnVersion(digest, model.id, model.path, step)
        return list(found.values())
