"""The present state of runs, for people: how far they are, what they wait for, and their last call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tandem.serve.store.database import Database
from tandem.serve.store.tables.tinker import CallRow, RunRow, is_unanswered
from tandem.serve.store.tables.training import ModelRow


@dataclass(frozen=True)
class LastCall:
    """The call with the highest number that has ended."""

    seq: int
    kind: str
    ended_at: datetime
    error: str | None


@dataclass(frozen=True)
class RunState:
    run: RunRow
    model: ModelRow
    num_waiting: int
    """Calls that have arrived and not ended."""
    last: LastCall | None

    @property
    def is_at_work(self) -> bool:
        """Whether learners have the run. Others wait for their client, or to be taken up."""
        return self.run.owner is not None


class RunStates:
    """For a caller, runs of other entities don't exist."""

    def __init__(self, database: Database):
        self._database = database

    def page(self, entity: str, limit: int, before: int | None = None, model_id: str | None = None) -> list[RunState]:
        """Return runs of an entity, the newest first. `before`: those with lower numbers; `model_id`: of one model."""
        query = select(RunRow, ModelRow).join(ModelRow, ModelRow.id == RunRow.model_id)
        query = query.where(RunRow.entity == entity, ModelRow.deleted_at.is_(None))
        if before is not None:
            query = query.where(RunRow.number < before)
        if model_id is not None:
            query = query.where(RunRow.model_id == model_id)
        with self._database.read() as session:
            rows = [(run, model) for run, model in session.execute(query.order_by(RunRow.number.desc()).limit(limit))]
            ids = [run.id for run, _ in rows]
            waiting, last = _num_waiting(session, ids), _last_calls(session, ids)
        return [RunState(run, model, waiting.get(run.id, 0), last.get(run.id)) for run, model in rows]


def _num_waiting(session: Session, ids: Sequence[str]) -> dict[str, int]:
    query = select(CallRow.run_id, func.count()).where(CallRow.run_id.in_(ids), is_unanswered())
    return {run_id: count for run_id, count in session.execute(query.group_by(CallRow.run_id))}


def _last_calls(session: Session, ids: Sequence[str]) -> dict[str, LastCall]:
    """Return the last call of each run in its order. Rows of calls that are long over are deleted."""
    call = CallRow
    seqs = select(call.run_id, func.max(call.seq).label("seq")).join(RunRow, RunRow.id == call.run_id)
    seqs = seqs.where(call.run_id.in_(ids), call.seq <= RunRow.applied_seq).group_by(call.run_id)
    last = seqs.subquery()
    query = select(call.run_id, call.seq, call.kind, call.answered_at, call.error).join(
        last, (last.c.run_id == call.run_id) & (last.c.seq == call.seq)
    )
    return {
        run_id: LastCall(seq, kind, answered_at, error)
        for run_id, seq, kind, answered_at, error in session.execute(query)
        if answered_at is not None
    }
