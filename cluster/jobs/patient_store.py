"""A job store that is asked again while it doesn't answer, until a deadline."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from tandem.cluster.errors import JobCancelledError, LeaseLostError, StoreUnavailableError
from tandem.cluster.jobs.job import ClaimedJob, JobStore, PolicyVersion, QueuedJob
from tandem.cluster.processes.deadlines import within

logger = logging.getLogger(__name__)
CALL = "store-call"
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0


class PatientStore(JobStore):
    """Repeats writes that fail, and gives up one that hangs: after `publish_s`, it raises StoreUnavailableError.

    A write whose answer was lost may have happened. Repeating it is safe: an event that is there already is ignored,
    and the claim's attempt fences the rest, so that the end of a job that has ended raises LeaseLostError.
    """

    def __init__(self, store: JobStore, publish_s: float):
        self._store, self._publish_s = store, publish_s

    def put_initial_version(self, base_model: str, digest: str) -> None:
        self._repeat(lambda: self._store.put_initial_version(base_model, digest))

    def claim_next(self, base_model: str, owner: str, lease_s: float) -> ClaimedJob | None:
        """Asks once: the coordinator asks again anyway."""
        return within(self._publish_s, lambda: self._store.claim_next(base_model, owner, lease_s), CALL)

    def next_queued(self, base_model: str) -> QueuedJob | None:
        """Asks once: it is only to save time."""
        return within(self._publish_s, lambda: self._store.next_queued(base_model), CALL)

    def renew(self, job: ClaimedJob, lease_s: float) -> None:
        """Asks once: the lease's keeper asks again anyway."""
        within(min(lease_s, self._publish_s), lambda: self._store.renew(job, lease_s), CALL)

    def report_waiting(self, job: ClaimedJob, reason: str | None) -> None:
        """Asks once, and work goes on if that fails: it is only there to be looked at."""
        try:
            within(self._publish_s, lambda: self._store.report_waiting(job, reason), CALL)
        except (LeaseLostError, JobCancelledError):
            raise
        except Exception:
            logger.warning("The store can't show what job %s waits for", job.id, exc_info=True)

    def record_event(self, job: ClaimedJob, type: str, data: Mapping[str, Any], index: int | None = None) -> None:
        self._repeat(lambda: self._store.record_event(job, type, data, index))

    def complete(self, job: ClaimedJob, version: PolicyVersion, metrics: Mapping[str, float]) -> None:
        self._repeat(lambda: self._store.complete(job, version, metrics))

    def fail(self, job: ClaimedJob, error_message: str) -> None:
        self._repeat(lambda: self._store.fail(job, error_message))

    def cancel(self, job: ClaimedJob) -> None:
        self._repeat(lambda: self._store.cancel(job))

    def requeue(self, job: ClaimedJob, reason: str) -> None:
        self._repeat(lambda: self._store.requeue(job, reason))

    def hand_back(self, job: ClaimedJob, reason: str) -> None:
        self._repeat(lambda: self._store.hand_back(job, reason))

    def _repeat(self, write: Callable[[], None]) -> None:
        deadline, pause = time.monotonic() + self._publish_s, FIRST_PAUSE_S
        while True:
            try:
                return within(max(0.0, deadline - time.monotonic()), write, CALL)
            except (LeaseLostError, JobCancelledError):
                raise
            except Exception as error:
                if time.monotonic() + pause > deadline:
                    raise StoreUnavailableError(
                        f"The job store took no write for {self._publish_s:g} s: {type(error).__name__}: {error}"
                    ) from error
                logger.warning("The job store failed; trying again in %.1f s", pause, exc_info=True)
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)
