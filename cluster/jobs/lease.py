"""The lease of a job: renewed in the background while the job runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.cluster.telemetry.context import in_this_context

logger = logging.getLogger(__name__)
MAX_INTERVAL_S = 2.0  # short, because a cancellation is noticed at a renewal


class LeaseKeeper:
    """Renews a job's lease in a thread, so that it doesn't run out during a long stage.

    with LeaseKeeper(lambda: store.renew(job, lease_s), lease_s, f"job {job.id}") as lease:
        ...
        lease.check()          # raises if the claim is lost or the job is cancelled

    `renew` raises LeaseLostError if the claim no longer holds. If the user has cancelled the job, it renews the lease
    and raises JobCancelledError.
    """

    def __init__(self, renew: Callable[[], None], lease_s: float, what: str):
        """`what` names the job in logs."""
        self._renew, self._lease_s, self._what = renew, lease_s, what
        self._ended = threading.Event()
        self._lost: LeaseLostError | None = None
        self._cancelled: JobCancelledError | None = None
        self._thread = threading.Thread(target=in_this_context(self._keep), name=f"lease of {what}", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(self._lease_s)  # it may be waiting for the store

    def check_held(self) -> None:
        """Raise LeaseLostError if this claim was taken over by another process or ended by the job's deletion."""
        if self._lost:
            raise self._lost

    def check(self) -> None:
        """Raise LeaseLostError as `check_held` does, or JobCancelledError if the user asked for cancellation."""
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
                self._cancelled = error  # the lease is renewed until the job has ended
            except Exception:
                # The lease may still hold. If another process takes the job over, the next write is fenced.
                logger.exception("The lease of %s couldn't be renewed; retrying", self._what)
