"""Keeps the claim on a job alive while the job runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from tandem.cluster.errors import JobCancelledError, LeaseLostError

logger = logging.getLogger(__name__)
MAX_INTERVAL_S = 2.0  # a renewal is also how a cancellation is noticed


class LeaseKeeper:
    """Renews a job's lease from a thread of its own, so that no long stage can let it run out.

    with LeaseKeeper(lambda: store.renew(job, lease_s), lease_s, f"job {job.id}") as lease:
        ...
        lease.check()          # between gradient steps: raises when the claim is lost or the job is cancelled

    `renew` raises LeaseLostError when the claim doesn't hold any more, and JobCancelledError, the lease renewed all the
    same, when the job is to end.
    """

    def __init__(self, renew: Callable[[], None], lease_s: float, what: str):
        """`what` names the job in logs."""
        self._renew, self._lease_s, self._what = renew, lease_s, what
        self._ended = threading.Event()
        self._lost: LeaseLostError | None = None
        self._cancelled: JobCancelledError | None = None
        self._thread = threading.Thread(target=self._keep, name=f"lease of {what}", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(self._lease_s)  # it may be waiting for the store

    def check_held(self) -> None:
        """Raises LeaseLostError when another process, or the job's deletion, has ended this claim."""
        if self._lost:
            raise self._lost

    def check(self) -> None:
        """Raises LeaseLostError, or JobCancelledError when the user asked for cancellation."""
        self.check_held()
        if self._cancelled:
            raise self._cancelled

    def _keep(self) -> None:
        while not self._ended.wait(min(self._lease_s / 3, MAX_INTERVAL_S)):
            try:
                self._renew()
            except LeaseLostError as error:
                self._lost = error
                return
            except JobCancelledError as error:
                self._cancelled = error  # the lease is held on until the job has ended
            except Exception:
                # A store that doesn't answer for a moment isn't a lost lease; if it lasts, the next write is fenced.
                logger.exception("The lease of %s couldn't be renewed; trying again", self._what)
