"""Runs as the coordinator sees them: claims, leases, and answers that are fenced by a claim's attempt number."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, select
from sqlalchemy.orm import Session, aliased

from tandem.cluster.calls.call import (
    JSON,
    NOTHING_USED,
    Anchor,
    CallOutcome,
    CallResult,
    CallStore,
    CallUsage,
    Category,
    ClaimedRun,
    RunCall,
    SaveRefusedError,
)
from tandem.serve.store.database import Database
from tandem.serve.store.tables.tinker import CallRow, RunRow, is_unanswered
from tandem.serve.store.tables.training import NEVER, ModelRow
from tandem.serve.store.training.open_runs import forget_anchors, forget_bodies
from tandem.serve.tinker.store.gaps import fail_gaps
from tandem.serve.tinker.store.quick_answers import answer_quickly, charge, check_held
from tandem.serve.tinker.store.saves import add_anchor, add_version, add_weights, check_save

_SAVES = ("save_weights", "save_for_sampler")
_PLAIN = ("forward_backward", "forward", "optim_step")


class RunClaims(CallStore):
    """The coordinator's journal of calls.

    Each coordinator polls `claim_run`, so the usual result, None, takes no lock. A run is claimable if its first call
    that waits has none missing before it, and no live claim holds it.
    """

    def __init__(self, database: Database, gap_s: float):
        self._database, self._gap_s = database, gap_s

    def claim_run(self, base_model: str, owner: str, lease_s: float) -> ClaimedRun | None:
        """Claim the run whose next call has waited longest; None if there is none."""
        now = self._database.now()
        line = {"base_model": base_model, "now": now}
        with self._database.read() as session:
            if session.execute(_CLAIMABLE, line).first() is None:
                return None
        with self._database.write() as session:
            row = session.execute(_CLAIMABLE.with_for_update(of=RunRow, skip_locked=True), line).first()
            if row is None:
                return None
            run, model = row
            run.owner, run.lease_expires_at = owner, now + timedelta(seconds=lease_s)
            run.attempt += 1
            run.waiting_for = None
            return ClaimedRun(
                id=run.id,
                model_id=run.model_id,
                policy=model.path,
                base_model=run.base_model,
                attempt=run.attempt,
                anchor=Anchor(run.anchor_digest, run.anchor_seq, run.anchor_has_optimizer),
                applied_seq=run.applied_seq,
                key_id=run.key_id,
                entity=run.entity,
            )

    def ready_runs(self, base_model: str) -> Sequence[str]:
        """Return the ids of the runs whose next call can be executed, claimed or not, in the order of their claims."""
        with self._database.quick_read() as connection:
            return connection.execute(_READY, {"base_model": base_model}).scalars().all()

    def change_mark(self) -> object | None:
        """See `Database.change_mark`."""
        return self._database.change_mark()

    def renew(self, run: ClaimedRun, lease_s: float) -> None:
        """Extend the lease."""
        with self._database.write() as session:
            _held(session, run).lease_expires_at = self._database.now() + timedelta(seconds=lease_s)

    def release(self, run: ClaimedRun) -> None:
        """Give the claim back. No error if it no longer holds."""
        with self._database.write() as session:
            row = session.scalars(select(RunRow).where(RunRow.id == run.id).with_for_update()).one()
            if row.attempt == run.attempt and row.unloaded_at is None:
                row.owner, row.lease_expires_at, row.waiting_for = None, NEVER, None

    def report_waiting(self, run: ClaimedRun, reason: str | None) -> None:
        """Record what the run waits for; None once it no longer waits."""
        with self._database.write() as session:
            _held(session, run).waiting_for = reason

    def answered_since_anchor(self, run: ClaimedRun) -> tuple[Anchor, Sequence[RunCall]]:
        """Return the anchor, and the calls after it that have ended in their turn, in order, failed ones among them."""
        with self._database.quick_read() as connection:
            now = _progress(connection, run)
            since = {"of_run": run.id, "first": now.anchor_seq, "last": now.applied_seq}
            calls = [_call(row) for row in connection.execute(_CALLS_UNTIL, since)]
            return Anchor(now.anchor_digest, now.anchor_seq, now.anchor_has_optimizer), calls

    def next_calls(self, run: ClaimedRun) -> Sequence[RunCall]:
        """Return the calls after the last one that has ended in its turn, up to the first missing number."""
        with self._database.quick_read() as connection:
            applied_seq = _progress(connection, run).applied_seq
            calls: list[RunCall] = []
            after = connection.execute(_CALLS, {"of_run": run.id, "first": applied_seq})
            for number, row in enumerate(after, start=applied_seq + 1):
                if row.seq != number:
                    break
                calls.append(_call(row))
            return calls

    def check_save(self, run: ClaimedRun, call: RunCall) -> int:
        """See `CallStore.check_save`."""
        with self._database.read() as session:
            row = session.scalars(select(RunRow).where(RunRow.id == run.id)).one()
            check_held(run, row.attempt, row.unloaded_at)
            check_save(session, row, call, self._database.now())
            return session.scalars(select(ModelRow.next_step).where(ModelRow.id == run.model_id)).one()

    def answer(self, run: ClaimedRun, call: RunCall, result: CallResult) -> Sequence[str]:
        """Record a result with all that follows from it, in one transaction. See `CallStore.answer`.

        A save whose name was taken after `check_save` becomes a failed call. Its checkpoint still serves as the run's
        anchor.
        """
        now = self._database.now()
        with self._database.write() as session:
            if call.kind in _PLAIN and result.anchor is None:
                return answer_quickly(session, run, call, result, now)
            query = select(ModelRow).where(ModelRow.id == run.model_id)
            model = session.scalars(query.with_for_update() if call.kind == "save_for_sampler" else query).one()
            row = _held(session, run)
            stored = session.get_one(CallRow, (run.id, call.seq))
            if stored.answered_at is not None:
                return []
            stored.answered_at, stored.media_type, content = now, result.media_type, result.content
            if call.kind in _SAVES:
                assert result.saved is not None, "a save has a checkpoint"
                try:
                    with session.begin_nested():
                        if call.kind == "save_weights":
                            content = add_weights(session, row, call, result.saved, now)
                        else:
                            content = add_version(session, row, model, call, result.saved, now)
                    stored.media_type = JSON
                except SaveRefusedError as error:
                    stored.error, stored.category = str(error), "user"
                    add_anchor(session, row, call.seq, result.saved.digest, result.saved.has_optimizer, now)
            elif call.kind == "load_weights":
                row.parent = call.options.get("parent")
            if stored.error is None:
                stored.result = content
            row.applied_seq = max(row.applied_seq, call.seq)
            charge(session, run, call, result.usage, model.next_step, now)
            if result.anchor is None:
                return []
            session.flush()
            return self._move_anchor(session, row, result.anchor)

    def refuse(
        self, run: ClaimedRun, call: RunCall, message: str, category: Category, usage: CallUsage = NOTHING_USED
    ) -> None:
        """Record that the call has failed. A repeat, or the refusal of a call that has ended, changes nothing."""
        now = self._database.now()
        with self._database.write() as session:
            row = _held(session, run)
            stored = session.get_one(CallRow, (run.id, call.seq))
            if stored.answered_at is None:
                stored.answered_at, stored.error, stored.category = now, message, category
                row.applied_seq = max(row.applied_seq, call.seq)
                next_step = session.scalars(select(ModelRow.next_step).where(ModelRow.id == run.model_id)).one()
                charge(session, run, call, usage, next_step, now)

    def set_anchor(self, run: ClaimedRun, anchor: Anchor) -> Sequence[str]:
        """Record a later anchor, a checkpoint of its own. Return the keys of bodies that aren't needed any more."""
        with self._database.write() as session:
            row = _held(session, run)
            if anchor.seq <= row.anchor_seq:
                return []
            add_anchor(session, row, anchor.seq, anchor.digest, anchor.has_optimizer, self._database.now())
            session.flush()
            return self._move_anchor(session, row, anchor)

    def fail_gaps(self, base_model: str) -> int:
        """See `CallStore.fail_gaps`."""
        return fail_gaps(self._database, base_model, self._gap_s)

    def _move_anchor(self, session: Session, run: RunRow, anchor: Anchor) -> list[str]:
        if anchor.seq < run.anchor_seq:
            return []
        run.anchor_digest, run.anchor_seq, run.anchor_has_optimizer = anchor.digest, anchor.seq, anchor.has_optimizer
        forget_anchors(session, run.id, self._database.now(), but=anchor.digest)
        return forget_bodies(session, run.id, anchor.seq)


def _held(session: Session, run: ClaimedRun) -> RunRow:
    """Lock and return the run's row. Raises LeaseLostError if the claim no longer holds."""
    row = session.scalars(select(RunRow).where(RunRow.id == run.id).with_for_update()).one()
    check_held(run, row.attempt, row.unloaded_at)
    return row


def _is_ready() -> tuple[ColumnElement[bool], ...]:
    """True for the first call of a run that waits, if none is missing before it."""
    before = aliased(CallRow)
    num_before = (
        select(func.count())
        .where(before.run_id == CallRow.run_id, before.seq > RunRow.applied_seq, before.seq < CallRow.seq)
        .where(before.answered_at.is_not(None))
        .scalar_subquery()
    )
    return (
        RunRow.base_model == bindparam("base_model"),
        RunRow.unloaded_at.is_(None),
        is_unanswered(),
        CallRow.seq - RunRow.applied_seq - 1 == num_before,
    )


_READY = (
    select(RunRow.id)
    .join(CallRow, CallRow.run_id == RunRow.id)
    .where(*_is_ready())
    .order_by(CallRow.arrived_at, RunRow.number)
)
_CLAIMABLE = (
    select(RunRow, ModelRow)
    .join(CallRow, CallRow.run_id == RunRow.id)
    .join(ModelRow, ModelRow.id == RunRow.model_id)
    .where(*_is_ready(), RunRow.lease_expires_at <= bindparam("now"))
    .order_by(CallRow.arrived_at, RunRow.number)
    .limit(1)
)
_PROGRESS = select(
    *(RunRow.attempt, RunRow.unloaded_at, RunRow.applied_seq),
    *(RunRow.anchor_digest, RunRow.anchor_seq, RunRow.anchor_has_optimizer),
).where(RunRow.id == bindparam("of_run"))
_CALLS = (
    select(
        *(CallRow.seq, CallRow.kind, CallRow.body_key, CallRow.options, CallRow.num_bytes),
        *(CallRow.answered_at, CallRow.error),
    )
    .where(CallRow.run_id == bindparam("of_run"), CallRow.seq > bindparam("first"))
    .order_by(CallRow.seq)
)
_CALLS_UNTIL = _CALLS.where(CallRow.seq <= bindparam("last"))


def _progress(connection: Connection, run: ClaimedRun) -> Row[int, datetime | None, int, str, int, bool]:
    """Return how far a claimed run is. Raises LeaseLostError if the claim no longer holds."""
    row = connection.execute(_PROGRESS, {"of_run": run.id}).one()
    check_held(run, row.attempt, row.unloaded_at)
    return row


def _call(row: Row[Any]) -> RunCall:
    outcome: CallOutcome | None = None
    if row.answered_at is not None:
        outcome = "answered" if row.error is None else "failed"
    return RunCall(row.seq, row.kind, row.body_key, row.options, row.num_bytes, outcome)
