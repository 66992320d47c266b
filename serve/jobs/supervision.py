"""Supervise a claimed job of a runner: its lease, requests to stop it, and the shutdown of the service."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tandem.cluster.jobs.lease import LeaseKeeper


class RunnerStoppedError(Exception):
    """The service shuts down. The job continues, and another runner will claim it."""


class JobSupervision:
    """One claimed job. Safe to share between the job's threads.

    with JobSupervision(renew, lease_s, "job 7", stop) as supervision:
        supervision.wait(0.5)    # raises if the job is to stop, the service shuts down, or the claim is lost

    A thread of its own renews the lease, so that slow work can't let it expire.
    """

    def __init__(self, renew: Callable[[], None], lease_s: float, what: str, stop: threading.Event):
        """`renew` is that of a `LeaseKeeper`; `what` names the job in logs; `stop` is set when the service stops."""
        self._lease, self._stop = LeaseKeeper(renew, lease_s, what), stop

    def __enter__(self) -> Self:
        self._lease.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lease.__exit__(kind, error, trace)

    def wait(self, seconds: float) -> None:
        """Sleep. Raises RunnerStoppedError, LeaseLostError, and JobCancelledError after a request to stop the job."""
        self._sleep(seconds)
        self._lease.check()

    def wait_held(self, seconds: float) -> None:
        """Sleep. Raises RunnerStoppedError and LeaseLostError; a request to stop the job is known already."""
        self._sleep(seconds)
        self._lease.check_held()

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise RunnerStoppedError
