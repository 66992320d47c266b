"""Finds files that no row needs any more: payloads, bodies of calls, and checkpoints of deleted versions and runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, delete, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute, aliased

from tandem.cluster.artifacts import is_dataset
from tandem.serve.store.database import Database
from tandem.serve.store.policies.run_files import needed_by_runs
from tandem.serve.store.policies.versions import is_initial
from tandem.serve.store.tables.tinker import CallRow, RunCheckpointRow
from tandem.serve.store.tables.training import DatasetRow, JobRow, LogRow, ModelRow, VersionRow, is_open

KEYS_PER_QUERY = 500  # databases limit the parameters of a query


class Garbage:
    def __init__(self, database: Database):
        self._database = database

    def unknown_blobs(self, keys: Sequence[str]) -> list[str]:
        """Return the keys that are neither a dataset, nor the payload of a job or a log, nor the body of a call.

        The blob of a dataset stays with its row alone, so that ended jobs don't keep it.
        """
        known: set[str] = set()
        with self._database.read() as session:
            for start in range(0, len(keys), KEYS_PER_QUERY):
                asked = keys[start : start + KEYS_PER_QUERY]
                of_job = select(JobRow.payload_key).where(JobRow.payload_key.in_(asked))
                known.update(key for key in session.scalars(of_job) if not is_dataset(key))
                known.update(session.scalars(select(DatasetRow.blob_key).where(DatasetRow.blob_key.in_(asked))))
                known.update(session.scalars(select(LogRow.payload_key).where(LogRow.payload_key.in_(asked))))
                bodies = session.scalars(select(CallRow.body_key).where(CallRow.body_key.in_(asked)))
                known.update(key for key in bodies if key is not None)
        return [key for key in keys if key not in known]

    def jobs_without_model(self, job_ids: Sequence[str]) -> list[str]:
        """Return the ids of jobs whose model was deleted, and those that no job has."""
        known: set[str] = set()
        with self._database.read() as session:
            for start in range(0, len(job_ids), KEYS_PER_QUERY):
                asked = JobRow.id.in_(job_ids[start : start + KEYS_PER_QUERY])
                query = select(JobRow.id).join(JobRow.model).where(asked, ModelRow.deleted_at.is_(None))
                known.update(session.scalars(query))
        return [job_id for job_id in job_ids if job_id not in known]

    def unused_digests(self, retired_before: datetime | None = None) -> Sequence[str]:
        """Return checkpoints of deleted versions and runs that no version, open job, run or sampler needs any more.

        Those of versions that retention deleted are left out, unless it did so before the given time.
        """
        of_versions = select(VersionRow.digest).where(
            VersionRow.deleted_at.is_not(None), VersionRow.files_removed_at.is_(None)
        )
        of_runs = select(RunCheckpointRow.digest).where(RunCheckpointRow.deleted_at.is_not(None))
        with self._database.read() as session:
            unused = {
                *session.scalars(of_versions.where(~self._needed(VersionRow.digest, retired_before)).distinct()),
                *session.scalars(of_runs.where(~self._needed(RunCheckpointRow.digest, retired_before)).distinct()),
            }
        return sorted(unused)

    def _needed(self, digest: InstrumentedAttribute[str], retired_before: datetime | None) -> ColumnElement[bool]:
        """True for a checkpoint that something needs."""
        live, lagged = aliased(VersionRow), aliased(VersionRow)
        needed_by_version = select(live.step).where(live.digest == digest, live.deleted_at.is_(None)).exists()
        needed_by_job = (
            select(JobRow.number)
            .where(is_open(), or_(JobRow.start_digest == digest, JobRow.reference_digest == digest))
            .exists()
        )
        # A job with a reference lag may need any version that existed when it was accepted.
        needed_by_lag = (
            select(JobRow.number)
            .join(lagged, lagged.model_id == JobRow.model_id)
            .where(is_open(), JobRow.reference_lag.is_not(None), lagged.deleted_at > JobRow.created_at)
            .where(lagged.digest == digest)
            .exists()
        )
        # A job that started where the deleted version's job started may make the same checkpoint. It would find the
        # files, keep them as they are, and then lose them.
        maker, repeating, made = aliased(JobRow), aliased(JobRow), aliased(VersionRow)
        needed_by_repetition = (
            select(repeating.number)
            .join(maker, maker.start_digest == repeating.start_digest)
            .join(made, (made.model_id == maker.model_id) & (made.step == maker.step))
            .where(is_open(repeating), made.digest == digest)
            .exists()
        )
        # A request that began before may need the files of a retired version.
        retired = aliased(VersionRow)
        is_recent = true() if retired_before is None else retired.retired_at >= retired_before
        is_retired = retired.retired_at.is_not(None) & retired.files_removed_at.is_(None)
        needed_by_request = select(retired.step).where(retired.digest == digest, is_retired, is_recent).exists()
        return (
            needed_by_version
            | needed_by_job
            | needed_by_lag
            | needed_by_repetition
            | needed_by_request
            | needed_by_runs(digest, self._database.now())
            | is_initial(digest)
        )

    def forget_digest(self, digest: str) -> None:
        """Delete the rows of deleted versions and checkpoints with this digest, once its files are gone.

        Those of retired versions are marked.
        """
        dead = VersionRow.digest == digest, VersionRow.deleted_at.is_not(None)
        with self._database.write() as session:
            session.execute(delete(VersionRow).where(*dead, VersionRow.retired_at.is_(None)))
            of_runs = RunCheckpointRow.digest == digest, RunCheckpointRow.deleted_at.is_not(None)
            session.execute(delete(RunCheckpointRow).where(*of_runs))
            for row in session.scalars(select(VersionRow).where(*dead)):
                row.files_removed_at = self._database.now()
