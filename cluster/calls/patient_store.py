"""A store of calls whose writes are retried while it fails, until a deadline."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tandem.cluster.calls.call import (
    NOTHING_USED,
    Anchor,
    CallResult,
    CallStore,
    CallUsage,
    Category,
    ClaimedRun,
    RunCall,
)
from tandem.cluster.jobs.patient_store import retrying

logger = logging.getLogger(__name__)


class PatientCallStore(CallStore):
    """Retries writes that fail, for up to `publish_s`. After that, they raise StoreUnavailableError.

    Repeating a write whose answer was lost is safe: the same claim's second answer is ignored.
    """

    def __init__(self, store: CallStore, publish_s: float):
        self._store, self._retrying = store, retrying(publish_s)

    def claim_run(self, base_model: str, owner: str, lease_s: float) -> ClaimedRun | None:
        """Not retried: the coordinator calls it again anyway, like the next ones."""
        return self._store.claim_run(base_model, owner, lease_s)

    def ready_runs(self, base_model: str) -> Sequence[str]:
        return self._store.ready_runs(base_model)

    def fail_gaps(self, base_model: str) -> int:
        return self._store.fail_gaps(base_model)

    def renew(self, run: ClaimedRun, lease_s: float) -> None:
        self._store.renew(run, lease_s)

    def change_mark(self) -> object | None:
        try:
            return self._store.change_mark()
        except OSError:
            return None

    def report_waiting(self, run: ClaimedRun, reason: str | None) -> None:
        """Not retried, and a failure is only logged: it affects no call."""
        try:
            self._store.report_waiting(run, reason)
        except Exception:
            logger.warning("The store can't show what run %s waits for", run.id, exc_info=True)

    def release(self, run: ClaimedRun) -> None:
        self._retrying(lambda: self._store.release(run))

    def answered_since_anchor(self, run: ClaimedRun) -> tuple[Anchor, Sequence[RunCall]]:
        found: tuple[Anchor, Sequence[RunCall]] = self._retrying(lambda: self._store.answered_since_anchor(run))
        return found

    def next_calls(self, run: ClaimedRun) -> Sequence[RunCall]:
        calls: Sequence[RunCall] = self._retrying(lambda: self._store.next_calls(run))
        return calls

    def check_save(self, run: ClaimedRun, call: RunCall) -> int:
        step: int = self._retrying(lambda: self._store.check_save(run, call))
        return step

    def answer(self, run: ClaimedRun, call: RunCall, result: CallResult) -> Sequence[str]:
        keys: Sequence[str] = self._retrying(lambda: self._store.answer(run, call, result))
        return keys

    def refuse(
        self, run: ClaimedRun, call: RunCall, message: str, category: Category, usage: CallUsage = NOTHING_USED
    ) -> None:
        self._retrying(lambda: self._store.refuse(run, call, message, category, usage))

    def set_anchor(self, run: ClaimedRun, anchor: Anchor) -> Sequence[str]:
        keys: Sequence[str] = self._retrying(lambda: self._store.set_anchor(run, anchor))
        return keys
