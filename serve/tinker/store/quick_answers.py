"""Answers that make no checkpoint, written without the ORM: they decide how fast a client's loop turns."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from tandem.cluster.calls.call import CallResult, CallUsage, ClaimedRun, RunCall
from tandem.cluster.errors import LeaseLostError
from tandem.serve.store.ledger.amounts import Account, Amounts, add_amounts
from tandem.serve.store.tables.tinker import CallRow, RunRow
from tandem.serve.store.tables.training import ModelRow, plain

_RUN, _CALL = plain(RunRow).c, plain(CallRow).c
_HELD = (
    select(_RUN.attempt, _RUN.unloaded_at, _RUN.applied_seq, ModelRow.next_step)
    .join(ModelRow, ModelRow.id == _RUN.model_id)
    .where(_RUN.id == bindparam("of_run"))
    .with_for_update(of=RunRow)
)
# The columns that these set are those in the parameters.
_ANSWER = update(plain(CallRow)).where(
    _CALL.run_id == bindparam("of_run"), _CALL.seq == bindparam("of_call"), _CALL.answered_at.is_(None)
)
_APPLY = update(plain(RunRow)).where(_RUN.id == bindparam("of_run"))


def answer_quickly(session: Session, run: ClaimedRun, call: RunCall, result: CallResult, now: datetime) -> list[str]:
    """Record the result of a call that leaves neither a checkpoint nor an anchor. See `CallStore.answer`."""
    connection = session.connection()
    held = connection.execute(_HELD, {"of_run": run.id}).one()
    check_held(run, held.attempt, held.unloaded_at)
    is_replayed = call.kind != "forward"  # which has no effect
    answer = {
        "of_run": run.id,
        "of_call": call.seq,
        "answered_at": now,
        "result": result.content,
        "media_type": result.media_type,
        "body_key": call.body_key if is_replayed else None,
    }
    if not connection.execute(_ANSWER, answer).rowcount:
        return []
    connection.execute(_APPLY, {"of_run": run.id, "applied_seq": max(held.applied_seq, call.seq)})
    charge(session, run, call, result.usage, held.next_step, now)
    return [] if is_replayed or call.body_key is None else [call.body_key]


def charge(session: Session, run: ClaimedRun, call: RunCall, usage: CallUsage, next_step: int, now: datetime) -> None:
    """Add to the ledger what a call has used, for the version that the run makes next."""
    account = Account(
        entity=run.entity,
        base_model=run.base_model,
        model_id=run.model_id,
        step=next_step,
        key_id=run.key_id or "",
        phase=call.kind,
    )
    add_amounts(session, now, [(account, Amounts(**vars(usage)))])


def check_held(run: ClaimedRun, attempt: int, unloaded_at: datetime | None) -> None:
    """Raise LeaseLostError if the claim no longer holds."""
    if unloaded_at is not None:
        raise LeaseLostError(f"Run {run.id} was unloaded; attempt {run.attempt} can no longer change it.")
    if attempt != run.attempt:
        raise LeaseLostError(
            f"Run {run.id} was taken over: attempt {attempt} runs; attempt {run.attempt} can no longer change it."
        )
