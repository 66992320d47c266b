"""What ends by time in runs of the Tinker API: results, and checkpoints with a limited life."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select, update

from tandem.serve.store.database import Database
from tandem.serve.store.tables.tinker import CallRow, RunCheckpointRow, RunRow
from tandem.serve.store.tables.training import VersionRow

NUMBERS_KEPT = timedelta(days=1)
"""How long a call that nothing replays keeps its row, so that a repeat gets the answer that its number is taken."""
ROWS_AT_ONCE = 500


class RunUpkeep:
    """Several processes may do this at once."""

    def __init__(self, database: Database):
        self._database = database

    def forget_results(self, result_s: float) -> None:
        """Forget results that aren't kept any more, and calls that nothing needs."""
        now = self._database.now()
        while self._forget_some(now - timedelta(seconds=result_s)):
            pass
        while self._delete_some(now - max(timedelta(seconds=result_s), NUMBERS_KEPT)):
            pass

    def expire_checkpoints(self) -> list[str]:
        """Delete checkpoints whose time is over, with their versions unless a user keeps them. Return their paths."""
        now, row = self._database.now(), RunCheckpointRow
        query = select(row).where(row.expires_at <= now, row.deleted_at.is_(None)).order_by(row.number)
        with self._database.read() as session:
            if session.scalar(query.limit(1)) is None:
                return []
        with self._database.write() as session:
            expired = session.scalars(query.limit(ROWS_AT_ONCE).with_for_update(skip_locked=True)).all()
            for checkpoint in expired:
                checkpoint.deleted_at = now
                if checkpoint.step is None:
                    continue
                version = VersionRow.model_id == checkpoint.model_id, VersionRow.step == checkpoint.step
                live = VersionRow.deleted_at.is_(None), VersionRow.kept_at.is_(None)
                session.execute(update(VersionRow).where(*version, *live).values(deleted_at=now))
            return [checkpoint.path for checkpoint in expired]

    def _forget_some(self, answered_before: datetime) -> bool:
        old = select(CallRow.run_id, CallRow.seq).where(
            CallRow.answered_at < answered_before, CallRow.result.is_not(None)
        )
        with self._database.read() as session:
            keys = session.execute(old.limit(ROWS_AT_ONCE)).all()
        with self._database.write() as session:
            for run_id, seq in keys:
                session.execute(update(CallRow).where(CallRow.run_id == run_id, CallRow.seq == seq).values(result=None))
        return len(keys) == ROWS_AT_ONCE

    def _delete_some(self, answered_before: datetime) -> bool:
        """Delete rows of calls that lie before the anchor of their run, or whose run is unloaded."""
        old = (
            select(CallRow.run_id, CallRow.seq)
            .join(RunRow, RunRow.id == CallRow.run_id)
            .where(CallRow.answered_at < answered_before, CallRow.body_key.is_(None))
            .where(CallRow.seq <= RunRow.applied_seq)
            .where(or_(CallRow.seq <= RunRow.anchor_seq, RunRow.unloaded_at.is_not(None)))
        )
        with self._database.read() as session:
            keys = session.execute(old.limit(ROWS_AT_ONCE)).all()
        with self._database.write() as session:
            for run_id, seq in keys:
                session.execute(delete(CallRow).where(CallRow.run_id == run_id, CallRow.seq == seq))
        return len(keys) == ROWS_AT_ONCE
