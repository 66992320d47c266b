"""A claimed job while it runs: how long it may continue, and what it records in the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from tandem.cluster.errors import ServiceStopsError
from tandem.cluster.jobs.job import ClaimedJob, JobStore
from tandem.cluster.jobs.lease import LeaseKeeper
from tandem.cluster.jobs.phases import Outcome, PhaseClock, PhaseListener

logger = logging.getLogger(__name__)
RECORD_PHASES_S = 5.0
"""The phases of an attempt whose process dies are known up to this long before its death."""


class ServiceStop:
    """A stop of the service: no job is claimed any more, and running ones may continue for `grace_s`."""

    def __init__(self, grace_s: float):
        self._grace_s, self._requested, self._end = grace_s, threading.Event(), float("inf")

    @property
    def is_requested(self) -> bool:
        return self._requested.is_set()

    def request(self) -> None:
        self._end = time.monotonic() + self._grace_s
        self._requested.set()

    def check_grace(self) -> None:
        """Raise ServiceStopsError if the grace is over."""
        if time.monotonic() > self._end:
            raise ServiceStopsError("The service was stopped. The job resumes when the service runs again.")


class RunningJob:
    """A job that this process has claimed. Its lease is renewed in the background until the block ends.

    with RunningJob(claim, store, lease_s, stop) as job:
        job.check()                 # between two pieces of work
        learners.load(digest, on_wait=job.check_urgent)
    """

    def __init__(
        self,
        claim: ClaimedJob,
        store: JobStore,
        lease_s: float,
        stop: ServiceStop,
        listeners: Sequence[PhaseListener] = (),
    ):
        self.claim, self._store, self._stop = claim, store, stop
        self.clock = PhaseClock(claim, listeners)
        self.outcome: Outcome = "lost"
        """How this attempt ended, once it has."""
        self._lease_s, self._recorded_at = lease_s, time.monotonic()
        self._lease = LeaseKeeper(self._renew, lease_s, f"job {claim.id}")
        self._waiting_for: str | None = None

    def __enter__(self) -> RunningJob:
        self.clock.__enter__()
        self._lease.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lease.__exit__(kind, error, trace)
        self.clock.__exit__(kind, error, trace)
        self._record_phases(self.outcome)

    def _renew(self) -> None:
        try:
            self._store.renew(self.claim, self._lease_s)
        finally:
            if time.monotonic() - self._recorded_at >= RECORD_PHASES_S:
                self._record_phases(None)

    def _record_phases(self, outcome: Outcome | None) -> None:
        """Record the phases so far. They don't affect the job, so that a failure is only logged."""
        self._recorded_at = time.monotonic()
        try:
            self._store.record_phases(self.claim, self.clock.spans(), outcome)
        except Exception:
            logger.warning("The phases of job %s weren't recorded", self.claim.id, exc_info=True)

    def check(self) -> None:
        """Raise LeaseLostError, JobCancelledError or ServiceStopsError if the job has to end. For places where it can
        end without damage."""
        self._lease.check()
        self._stop.check_grace()

    def check_urgent(self) -> None:
        """Raise LeaseLostError or ServiceStopsError, but let a cancelled job continue. For places where ending the job
        would cost new learners."""
        self._lease.check_held()
        self._stop.check_grace()

    def record(self, event: str, data: Mapping[str, Any]) -> None:
        with self.clock.phase("record"):
            self._store.record_event(self.claim, event, data)

    def record_step(self, index: int, metrics: Mapping[str, float]) -> None:
        """Record the gradient step with this index, from 0, unless an earlier attempt has recorded it."""
        if index >= self.claim.num_recorded_gradient_steps:
            with self.clock.phase("record"):
                self._store.record_event(self.claim, "gradient_step", metrics, index)

    def show_waiting(self, reason: str | None) -> None:
        """Show users what the job waits for, None for nothing."""
        if reason != self._waiting_for:
            self._waiting_for = reason
            with self.clock.phase("record"):
                self._store.report_waiting(self.claim, reason)
