"""What every supervised job shares: its claim, its log, whether it is to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from types import TracebackType

from tandem.cluster.errors import LeaseLostError
from tandem.cluster.storage import Location
from tandem.serve.store import Store
from tandem.serve.store_user_job_claims import ClaimedUserJob
from tandem.serve.store_user_jobs import UserJobStatus

logger = logging.getLogger(__name__)
MAX_INTERVAL_S = 2.0  # a renewal is also how a stop is noticed
MAX_LOG_LINES = 1_000_000
"""Of one worker; a program that writes more has its log cut here, and a line that says so."""
MAX_LINE_CHARS = 16_384


class RunnerStoppedError(Exception):
    """The service ends; the job goes on with the next runner."""


class StopRequestedError(Exception):
    """The user wants the job to end."""


class JobFailedError(Exception):
    """The job ends as failed, with this message."""

    def __init__(self, message: str, status: UserJobStatus = UserJobStatus.FAILED):
        super().__init__(message)
        self.status = status


class Supervision:
    """One job in the care of this runner. Safe to share between the job's threads.

    with Supervision(store, job, lease_s, stop) as supervision:
        supervision.log("worker-0.log", lines)
        supervision.wait(0.5)    # raises when the job is to stop, the service ends, or the claim is lost

    The claim is renewed by a thread of its own, so that nothing that takes long (code to fetch, a job server that is
    slow to answer) can let it run out.
    """

    def __init__(self, store: Store, job: ClaimedUserJob, lease_s: float, stop: threading.Event):
        self.job, self._store, self._lease_s, self._stop = job, store, lease_s, stop
        self._lines: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._reason: Exception | None = None
        self._keeper = threading.Thread(target=self._keep, name=f"claim-{job.version_id}", daemon=True)

    def __enter__(self) -> Supervision:
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._keeper.join()

    def wait(self, seconds: float) -> None:
        """Lets time pass and writes the log. Raises RunnerStoppedError, StopRequestedError, LeaseLostError."""
        if self._stop.wait(seconds):
            raise RunnerStoppedError
        self.flush()
        if self._reason is not None:
            raise self._reason

    def _keep(self) -> None:
        while not self._ended.wait(min(MAX_INTERVAL_S, self._lease_s / 3)):
            try:
                if self._store.renew_user_job(self.job, self._lease_s):
                    self._reason = StopRequestedError()  # the claim is held on until the program has ended
            except LeaseLostError as error:
                self._reason = error
                return
            except Exception:  # a store that doesn't answer for a moment isn't a lost claim
                logger.exception("The claim on version %d couldn't be renewed; trying again", self.job.version_id)

    def log(self, file: str, lines: Sequence[str]) -> None:
        """Adds lines to a log file of the job; they are stored at the next `wait` or `flush`."""
        with self._lock:
            count = self._counts.get(file, 0)
            kept = [line[:MAX_LINE_CHARS] for line in lines[: max(0, MAX_LOG_LINES - count)]]
            if count < MAX_LOG_LINES <= count + len(lines):
                kept.append(f"tandem: the log ends here, after {MAX_LOG_LINES} lines.")
            self._counts[file] = count + len(lines)
            self._lines.setdefault(file, []).extend(kept)

    def flush(self) -> None:
        with self._lock:
            waiting, self._lines = self._lines, {}
        for file, lines in waiting.items():
            self._store.append_user_job_log(self.job, file, lines)

    def copy_logs(self, target: Location, files: Sequence[str]) -> None:
        """Writes the job's log files to a place of the user's. What can't be written is told in the log."""
        self.flush()
        for file in files:
            lines = self._store.user_job_log(self.job.version_id, file, 1, 2**31)
            try:
                target.write(file, "".join(f"{line}\n" for line in lines).encode())
            except OSError as error:
                self.log(file, [f"tandem: this log can't be copied to {target.url}: {error}"])

    def status(self, status: UserJobStatus, reason: str | None = None) -> None:
        self._store.set_user_job_status(self.job, status, reason)
