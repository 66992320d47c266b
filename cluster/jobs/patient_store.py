"""A job store whose writes are retried while it fails, until a deadline."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tenacity import RetryCallState, Retrying, before_sleep_log, retry_if_exception, stop_before_delay, wait_exponential

from tandem.cluster.errors import JobCancelledError, LeaseLostError, StoreUnavailableError
from tandem.cluster.jobs.job import ClaimedJob, JobStore, PolicyVersion, QueuedJob
from tandem.cluster.jobs.phases import Outcome, Phase
from tandem.rl.errors import RLError

logger = logging.getLogger(__name__)
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0


class PatientStore(JobStore):
    """Retries writes that fail, for up to `publish_s`. After that, they raise StoreUnavailableError.

    A failed write may have happened if only its answer was lost. Repeating it is safe: an event that is recorded
    already is ignored, and the claim's attempt fences the rest, so ending a job twice raises LeaseLostError.

    The store itself must give up a call that hangs, by timeouts of its database.
    """

    def __init__(self, store: JobStore, publish_s: float):
        self._store, self._retrying = store, retrying(publish_s)

    def put_initial_version(self, base_model: str, digest: str) -> None:
        self._retrying(lambda: self._store.put_initial_version(base_model, digest))

    def claim_next(self, base_model: str, owner: str, lease_s: float) -> ClaimedJob | None:
        """Not retried: the coordinator calls it again anyway."""
        return self._store.claim_next(base_model, owner, lease_s)

    def change_mark(self) -> object | None:
        """Not retried: without it, the coordinator only looks less often."""
        try:
            return self._store.change_mark()
        except OSError:
            return None

    def next_queued(self, base_model: str) -> QueuedJob | None:
        """Not retried: it only saves time."""
        return self._store.next_queued(base_model)

    def renew(self, job: ClaimedJob, lease_s: float) -> None:
        """Not retried: the LeaseKeeper calls it again anyway."""
        self._store.renew(job, lease_s)

    def report_waiting(self, job: ClaimedJob, reason: str | None) -> None:
        """Not retried, and a failure is only logged: it doesn't affect the job."""
        try:
            self._store.report_waiting(job, reason)
        except (LeaseLostError, JobCancelledError):
            raise
        except Exception:
            logger.warning("The store can't show what job %s waits for", job.id, exc_info=True)

    def record_phases(self, job: ClaimedJob, phases: Sequence[Phase], outcome: Outcome | None = None) -> None:
        """Not retried: the next record has all that this one has."""
        self._store.record_phases(job, phases, outcome)

    def record_event(self, job: ClaimedJob, type: str, data: Mapping[str, Any], index: int | None = None) -> None:
        self._retrying(lambda: self._store.record_event(job, type, data, index))

    def complete(self, job: ClaimedJob, version: PolicyVersion, metrics: Mapping[str, float]) -> None:
        self._retrying(lambda: self._store.complete(job, version, metrics))

    def fail(self, job: ClaimedJob, error_message: str, about: Mapping[str, str] | None = None) -> None:
        self._retrying(lambda: self._store.fail(job, error_message, about))

    def cancel(self, job: ClaimedJob) -> None:
        self._retrying(lambda: self._store.cancel(job))

    def requeue(self, job: ClaimedJob, reason: str) -> None:
        self._retrying(lambda: self._store.requeue(job, reason))

    def hand_back(self, job: ClaimedJob, reason: str) -> None:
        self._retrying(lambda: self._store.hand_back(job, reason))


def retrying(publish_s: float) -> Retrying:
    """Return a caller of writes that repeats a failed one for up to `publish_s` and then raises StoreUnavailableError.

    One that the store rejects, because of its claim or of what it would record, isn't repeated.
    """
    return Retrying(
        retry=retry_if_exception(_is_fault),
        wait=wait_exponential(FIRST_PAUSE_S, max=MAX_PAUSE_S),
        stop=stop_before_delay(publish_s),
        before_sleep=before_sleep_log(logger, logging.WARNING, exc_info=True),
        retry_error_callback=_give_up,
    )


def _is_fault(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, (LeaseLostError, JobCancelledError, RLError))


def _give_up(state: RetryCallState) -> None:
    assert state.outcome is not None
    error = state.outcome.exception()
    raise StoreUnavailableError(
        f"The job store accepted no write for {state.seconds_since_start or 0:.1f} s: {type(error).__name__}: {error}"
    ) from error
