"""Results of calls as clients ask for them, and why a call has none yet."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Row, bindparam, func, select
from sqlalchemy.orm import Session

from tandem.cluster.calls.call import JSON
from tandem.serve.errors import GoneError
from tandem.serve.store.database import Database
from tandem.serve.store.tables.tinker import CallRow, RunRow, is_unanswered
from tandem.serve.store.tables.training import JobRow, ModelRow, is_open
from tandem.serve.tinker.store.paths import no_request, parse_request_id
from tandem.serve.tinker.store.runs import no_run, not_served

QueueState = Literal["active", "paused_capacity"]


@dataclass(frozen=True)
class Waiting:
    """The call has not been run yet."""

    reason: str
    state: QueueState = "active"


@dataclass(frozen=True)
class Answered:
    content: bytes
    media_type: str


@dataclass(frozen=True)
class Announced:
    """Answered, with more than the client takes without knowing the size."""

    num_bytes: int


@dataclass(frozen=True)
class Failed:
    message: str
    category: str
    """user or server."""


Outcome = Waiting | Answered | Announced | Failed

_RUN = select(RunRow.model_id, RunRow.start_path, RunRow.unloaded_at, RunRow.applied_seq).where(
    RunRow.id == bindparam("run_id"), RunRow.entity == bindparam("entity")
)
_CALL = select(CallRow.answered_at, CallRow.result, CallRow.media_type, CallRow.error, CallRow.category).where(
    CallRow.run_id == bindparam("run_id"), CallRow.seq == bindparam("seq")
)


class Outcomes:
    def __init__(self, database: Database, result_s: float, base_models: Collection[str] | None = None):
        """`base_models`: those that are served; None: all."""
        self._database, self._kept, self._base_models = database, timedelta(seconds=result_s), base_models

    def poll(self, request_id: str, entity: str) -> Outcome | None:
        """Return the result of a call, None if it hasn't one yet. It is a short read.

        Raises NotFoundError for an unknown request, GoneError for a result that isn't kept any more.
        """
        run_id, seq = parse_request_id(request_id)
        with self._database.quick_read() as connection:
            run = connection.execute(_RUN, {"run_id": run_id, "entity": entity}).first()
            if run is None:
                raise no_run(run_id)
            call = connection.execute(_CALL, {"run_id": run_id, "seq": seq}).first() if seq else None
        if seq == 0 or (seq is None and run.unloaded_at is not None):
            return _of_run(run_id, seq, run)
        if seq is None or (call is None and seq > run.applied_seq):
            raise no_request(request_id)
        if call is None:
            raise _gone(request_id)
        if call.answered_at is None:
            return None
        if self._database.now() - call.answered_at > self._kept:
            raise _gone(request_id)
        if call.error is not None:
            return Failed(call.error, call.category)
        if call.result is None:
            raise _gone(request_id)
        return Answered(bytes(call.result), call.media_type)

    def outcome(self, request_id: str, entity: str) -> Outcome:
        """Return the result of a call, or why it has none yet. Raises what `poll` does."""
        found = self.poll(request_id, entity)
        if found is not None:
            return found
        run_id, seq = parse_request_id(request_id)
        with self._database.read() as session:
            run, model = session.execute(
                select(RunRow, ModelRow).join(ModelRow, ModelRow.id == RunRow.model_id).where(RunRow.id == run_id)
            ).one()
            if self._base_models is not None and run.base_model not in self._base_models:
                return Waiting(not_served(run.base_model), "paused_capacity")
            reason = _reason(session, run, model, seq or 0, self._database.now())
        return reason or self.outcome(request_id, entity)  # it has just ended


def _of_run(run_id: str, seq: int | None, run: Row[str, str | None, datetime | None, int]) -> Answered:
    """Return the result of creating or unloading a run."""
    result = {"model_id": run_id, "type": "create_model" if seq == 0 else "unload_model"}
    if seq == 0 and run.start_path is not None:
        result |= {"path": run.start_path, "type": "load_weights"}
    return Answered(json.dumps(result).encode(), JSON)


def _reason(session: Session, run: RunRow, model: ModelRow, seq: int, now: datetime) -> Waiting | None:
    """Return why a call hasn't been run; None if it has."""
    open_before = session.scalars(
        select(CallRow.seq).where(CallRow.run_id == run.id, is_unanswered(), CallRow.seq <= seq).order_by(CallRow.seq)
    ).all()
    if not open_before or open_before[-1] != seq:
        return None
    arrived = select(func.count()).where(CallRow.run_id == run.id, CallRow.seq > run.applied_seq, CallRow.seq < seq)
    if (session.scalar(arrived) or 0) < seq - run.applied_seq - 1:
        return Waiting(f"The call waits for call {_first_missing(session, run, seq)}, which hasn't arrived.")
    before, others = _before(len(open_before) - 1), _job(session, model, now)
    if run.waiting_for:
        return Waiting(f"{before or 'The call'} waits for {run.waiting_for.rstrip('.')}.", "paused_capacity")
    is_claimed = run.owner is not None and run.lease_expires_at > now
    named = " and ".join(part for part in (before, others) if part)
    if named:
        verb = "are" if (before and others) or len(open_before) > 2 else "is"
        return Waiting(f"{named} {verb} before it.", "active" if is_claimed else "paused_capacity")
    if is_claimed:
        return Waiting("The call is being run.")
    return Waiting("The call is the next one; it waits for the learners.", "paused_capacity")


def _before(count: int) -> str:
    return "" if count == 0 else "1 call of this model" if count == 1 else f"{count} calls of this model"


def _job(session: Session, model: ModelRow, now: datetime) -> str:
    """Return the training jobs that share the learners, in words. Those of other entities have no names."""
    running = (
        select(ModelRow.entity, ModelRow.project, ModelRow.name)
        .join(JobRow, JobRow.model_id == ModelRow.id)
        .where(ModelRow.base_model == model.base_model, is_open(), JobRow.state == "running")
        .where(JobRow.lease_expires_at > now)
        .order_by(JobRow.number)
    )
    jobs = session.execute(running).all()
    if not jobs:
        return ""
    own = [f"{entity}/{project}/{name}" for entity, project, name in jobs if entity == model.entity]
    if len(jobs) == 1:
        return f"a training job of {own[0]}" if own else "a training job of another entity"
    named = f", one of them of {own[0]}," if own else ""
    return f"{len(jobs)} training jobs{named}"


def _first_missing(session: Session, run: RunRow, seq: int) -> int:
    arrived = select(CallRow.seq).where(CallRow.run_id == run.id, CallRow.seq > run.applied_seq, CallRow.seq < seq)
    expected = run.applied_seq + 1
    for number in session.scalars(arrived.order_by(CallRow.seq)):
        if number != expected:
            break
        expected += 1
    return expected


def _gone(request_id: str) -> GoneError:
    return GoneError(
        f"The result of {request_id} isn't kept any more (tinker.result_s).", "result_expired", "request_id"
    )
