"""Copies of checkpoints: a run of its own that holds one, shares its files, and takes no calls."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select

from tandem.serve.store.database import Database
from tandem.serve.store.tables.tinker import SAMPLER_WEIGHTS, RunCheckpointRow
from tandem.serve.store.training.open_runs import unload
from tandem.serve.tinker.store.checkpoints import Checkpoint, Checkpoints
from tandem.serve.tinker.store.paths import parse_path
from tandem.serve.tinker.store.runs import Runs, Start, find_run
from tandem.serve.tinker.store.sessions import Sessions


@dataclass(frozen=True)
class Destination:
    """The place of a copy: a number in a session that exists, or a session of its own in a project."""

    session_id: str | None = None
    model_seq_id: int = 0
    project: str | None = None


class Copies:
    def __init__(self, database: Database, project: str):
        """`project` is that of copies whose destination names none."""
        self._database = database
        self._checkpoints, self._sessions = Checkpoints(database), Sessions(database)
        self._runs = Runs(database, project)

    def add(
        self,
        entity: str,
        key_id: str | None,
        source_path: str,
        destination: Destination,
        ttl_s: int | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Copy a checkpoint of the entity, or a public one, and return the path of the copy, which has its kind.

        A repeat with the same idempotency key, or for the same number of a session, returns the same path. Raises what
        `Checkpoints.resolve` and `Runs.create` do.
        """
        found = self._checkpoints.resolve(entity, source_path, "source_path")
        session_id = destination.session_id
        if session_id is None:
            key = None if idempotency_key is None else f"copy {idempotency_key}"[:255]
            session = self._sessions.create(entity, key_id, idempotency_key=key, project=destination.project)
            session_id = session.id
        run = self._runs.create(
            entity,
            key_id,
            session_id=session_id,
            model_seq_id=destination.model_seq_id,
            base_model=found.base_model,
            lora=found.lora,
            initial_digest=found.initial_digest,
            flags=found.flags or {},
            start=Start(source_path, found.has_optimizer),
        )
        return self._close(entity, run.id, found, ttl_s)

    def _close(self, entity: str, run_id: str, source: Checkpoint, ttl_s: int | None) -> str:
        """Name the checkpoint that the run began with, and let it take no calls."""
        now = self._database.now()
        with self._database.write() as session:
            run = find_run(session, entity, run_id, lock=True)
            first = select(RunCheckpointRow).where(RunCheckpointRow.run_id == run_id, RunCheckpointRow.seq == 0)
            row = session.scalar(first.where(RunCheckpointRow.kind == source.kind))
            if row is None:
                row = RunCheckpointRow(
                    run_id=run.id,
                    model_id=run.model_id,
                    entity=entity,
                    kind=source.kind,
                    name=parse_path(source.path).name,
                    seq=0,
                    digest=source.digest,
                    has_optimizer=source.has_optimizer,
                    num_bytes=source.num_bytes or 0,
                    step=1 if source.kind == SAMPLER_WEIGHTS else None,
                    parent=run.parent,
                    user_metadata=None if source.user_metadata is None else dict(source.user_metadata),
                    public=False,
                    created_at=now,
                    expires_at=None if ttl_s is None else now + timedelta(seconds=ttl_s),
                )
                session.add(row)
            unload(session, run, now, "This run holds a copy.")
            return row.path
