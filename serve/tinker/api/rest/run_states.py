"""The route that shows people how far the runs of clients are. The page reads it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel

from tandem.serve.api.auth import InferCaller
from tandem.serve.api.wire.paging import Limit, Listed, Page, cursor_number, numbered_cursor
from tandem.serve.tinker.api.context import TinkerDep
from tandem.serve.tinker.store.run_states import RunState

router = APIRouter(prefix="/preview/tinker-runs", tags=["models"])


class CallSummary(BaseModel):
    seq: int
    kind: str
    ended_at: datetime
    error: str | None


class ClientRun(Listed):
    """A model that a client trains by calls of its own."""

    run_id: str
    session_id: str
    model_id: str
    model: str
    base_model: str
    state: Literal["idle", "waiting", "training", "unloaded"]
    """idle: its client has sent no further call. unloaded: it takes no more calls."""
    waiting_for: str | None
    num_calls: int
    """Calls that have ended."""
    num_waiting_calls: int
    last_call: CallSummary | None
    start_path: str | None
    """The checkpoint that it began with."""
    user_metadata: dict[str, Any] | None
    created_at: datetime
    last_request_at: datetime


@router.get("")
def list_tinker_runs(
    caller: InferCaller,
    tinker: TinkerDep,
    model_id: UUID | None = None,
    after: str | None = None,
    limit: Limit = 20,
) -> Page[ClientRun]:
    """List the runs of clients of the Tinker API with their state, the newest first. `model_id`: that of one model."""
    before = None if after is None else cursor_number(after, "run")
    of_model = None if model_id is None else str(model_id)
    found = tinker.run_states.page(caller.entity, limit + 1, before, of_model)
    return Page.of([_view(state) for state in found], limit)


def _view(state: RunState) -> ClientRun:
    run, model, last = state.run, state.model, state.last
    return ClientRun(
        id=numbered_cursor("run", run.number),
        run_id=run.id,
        session_id=run.session_id,
        model_id=run.model_id,
        model=model.path,
        base_model=run.base_model,
        state=_state(state),
        waiting_for=run.waiting_for if state.num_waiting else None,
        num_calls=run.applied_seq,
        num_waiting_calls=state.num_waiting,
        last_call=last and CallSummary(seq=last.seq, kind=last.kind, ended_at=last.ended_at, error=last.error),
        start_path=run.start_path,
        user_metadata=run.user_metadata,
        created_at=run.created_at,
        last_request_at=run.last_request_at,
    )


def _state(state: RunState) -> Literal["idle", "waiting", "training", "unloaded"]:
    if state.run.unloaded_at is not None:
        return "unloaded"
    if state.num_waiting == 0:
        return "idle"
    return "training" if state.is_at_work and state.run.waiting_for is None else "waiting"
