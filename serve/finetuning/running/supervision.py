"""Supervise one claimed job: its lease, requests to cancel it, and the shutdown of the service."""

from __future__ import annotations

import threading
from types import TracebackType

from tandem.cluster.jobs.lease import LeaseKeeper
from tandem.serve.finetuning.store.claims import ClaimedFineTuning, FineTuningClaims


class RunnerStoppedError(Exception):
    """The service shuts down. The job continues, and another runner will claim it."""


class JobFailedError(Exception):
    """The job has failed, and ends with this error."""

    def __init__(self, message: str, code: str = "training_failed", param: str | None = None):
        super().__init__(message)
        self.code, self.param = code, param


class Supervision:
    """One claimed job.

    with Supervision(claims, job, lease_s, stop) as supervision:
        supervision.wait(0.5)    # raises if the job is to be cancelled, the service shuts down, or the claim is lost
    """

    def __init__(self, claims: FineTuningClaims, job: ClaimedFineTuning, lease_s: float, stop: threading.Event):
        self._stop = stop
        self._lease = LeaseKeeper(lambda: claims.renew(job, lease_s), lease_s, f"fine-tuning job {job.id}")

    def __enter__(self) -> Supervision:
        self._lease.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lease.__exit__(kind, error, trace)

    def wait(self, seconds: float) -> None:
        """Sleep. Raises RunnerStoppedError, LeaseLostError, and JobCancelledError after a request to cancel the job."""
        if self._stop.wait(seconds):
            raise RunnerStoppedError
        self._lease.check()

    def wait_held(self, seconds: float) -> None:
        """Sleep. Raises RunnerStoppedError and LeaseLostError; a request to cancel the job is known already."""
        if self._stop.wait(seconds):
            raise RunnerStoppedError
        self._lease.check_held()
