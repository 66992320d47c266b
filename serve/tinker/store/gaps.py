"""Calls that never arrive: after a time the run goes on without them."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session, load_only

from tandem.serve.store.database import Database
from tandem.serve.store.tables.tinker import CallRow, RunRow, is_unanswered

MAX_NAMED = 10
"""Missing numbers that a message names."""


def fail_gaps(database: Database, base_model: str, gap_s: float) -> int:
    """Give up numbers that later calls have waited for too long. Return how many runs were concerned."""
    now = database.now()
    late = now - timedelta(seconds=gap_s)
    query = (
        select(RunRow.id)
        .join(CallRow, CallRow.run_id == RunRow.id)
        .where(RunRow.base_model == base_model, RunRow.unloaded_at.is_(None))
        .where(is_unanswered(), CallRow.arrived_at <= late)
        .distinct()
    )
    with database.read() as session:
        waiting = [id for id in session.scalars(query) if _behind_gap(session, id, late)]
    num_failed = 0
    for run_id in waiting:
        with database.write() as session:
            run = session.scalars(select(RunRow).where(RunRow.id == run_id).with_for_update()).one()
            num_failed += run.unloaded_at is None and _fail(session, run, late, now, gap_s)
    return num_failed


def _behind_gap(session: Session, run_id: str, late: datetime) -> list[CallRow]:
    """Return the calls of a run that have arrived behind the first missing number, if one has waited too long."""
    after = select(CallRow).join(RunRow, RunRow.id == CallRow.run_id)
    after = after.where(CallRow.run_id == run_id, CallRow.seq > RunRow.applied_seq).order_by(CallRow.seq)
    applied = session.scalar(select(RunRow.applied_seq).where(RunRow.id == run_id)) or 0
    calls = session.scalars(after.options(load_only(CallRow.arrived_at, CallRow.answered_at))).all()
    for index, call in enumerate(calls):
        if call.seq != applied + 1 + index:
            behind = calls[index:]
            return list(behind) if min(one.arrived_at for one in behind) <= late else []
    return []


def _fail(session: Session, run: RunRow, late: datetime, now: datetime, gap_s: float) -> bool:
    behind = _behind_gap(session, run.id, late)
    if not behind:
        return False
    known = select(CallRow.seq).where(CallRow.run_id == run.id, CallRow.seq > run.applied_seq)
    arrived = set(session.scalars(known))
    missing = [seq for seq in range(run.applied_seq + 1, behind[-1].seq) if seq not in arrived]
    named = ", ".join(map(str, missing[:MAX_NAMED])) + (
        f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    )
    which = f"Call {named} of the model" if len(missing) == 1 else f"Calls {named} of the model"
    sentence = f"{which} didn't arrive within {gap_s:g} s after a later call (tinker.gap_s)"
    for seq in missing:
        session.add(
            CallRow(
                run_id=run.id,
                seq=seq,
                kind="missing",
                body_sha256="",
                num_bytes=0,
                options={},
                arrived_at=now,
                answered_at=now,
                error=f"{sentence}, so it was given up. Send the calls since the last optim_step again.",
                category="server",
            )
        )
    for call in behind:
        if call.answered_at is None:
            call.answered_at, call.category = now, "server"
            call.error = f"{sentence}, so this call behind it was not run. Send both again, with new numbers."
    return True
