"""Supervise one claimed job: its lease, its status, its log files, and requests to stop it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tandem.cluster.errors import JobCancelledError
from tandem.serve.jobs.supervision import JobSupervision
from tandem.serve.modelarts.settings.project_storage import Location
from tandem.serve.modelarts.store.claims import ClaimedUserJob
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.modelarts.store.store import ModelArtsStore

MAX_LOG_LINES = 1_000_000
"""Per log file. The log of a program that writes more is cut here, with a note."""
MAX_LINE_CHARS = 16_384


class JobFailedError(Exception):
    """The job has failed, and ends with this message and status."""

    def __init__(self, message: str, status: UserJobStatus = UserJobStatus.FAILED):
        super().__init__(message)
        self.status = status


def log_file(rank: int) -> str:
    """Return the name of a worker's log file."""
    return f"worker-{rank}.log"


class Supervision(JobSupervision):
    """One claimed job, with its status and log files.

    with Supervision(store, job, lease_s, stop) as supervision:
        supervision.log("worker-0.log", lines)
        supervision.wait(0.5)    # raises if the job is to stop, the service shuts down, or the claim is lost
    """

    def __init__(self, store: ModelArtsStore, job: ClaimedUserJob, lease_s: float, stop: threading.Event):
        what = f"version {job.version_id} of user job {job.name}"
        super().__init__(lambda: store.claims.renew(job, lease_s), lease_s, what, stop)
        self.job, self._store = job, store
        self._lines: dict[str, list[str]] = {}
        self._counts = store.logs.sizes(job)
        self._lock = threading.Lock()

    def wait(self, seconds: float) -> None:
        """Sleep, then store the log. Raises RunnerStoppedError, LeaseLostError, and JobCancelledError after a request
        to stop the job."""
        self._sleep(seconds)
        self.flush()
        self._lease.check()
        if self.job.stop_requested:
            raise JobCancelledError(f"A stop of job {self.job.name} was requested before this runner claimed it.")

    def status(self, status: UserJobStatus, reason: str | None = None) -> None:
        """Set the job's status, with what it waits for as `reason`. Raises LeaseLostError."""
        self._store.claims.set_status(self.job, status, reason)

    def log(self, file: str, lines: Sequence[str]) -> None:
        """Add lines to a log file of the job. The next `wait` or `flush` stores them."""
        with self._lock:
            count = self._counts.get(file, 0)
            kept = [line[:MAX_LINE_CHARS] for line in lines[: max(0, MAX_LOG_LINES - count)]]
            if count < MAX_LOG_LINES <= count + len(lines):
                kept.append(f"tandem: this log is cut after {MAX_LOG_LINES} lines.")
            self._counts[file] = count + len(lines)
            self._lines.setdefault(file, []).extend(kept)

    def flush(self) -> None:
        """Store the added lines. Raises LeaseLostError."""
        with self._lock:
            waiting, self._lines = self._lines, {}
        for file, lines in waiting.items():
            self._store.logs.append(self.job, file, lines)

    def copy_logs(self, target: Location, files: Sequence[str]) -> None:
        """Copy log files to the user's storage. A failure is reported in the log."""
        self.flush()
        for file in files:
            lines = self._store.logs.read(self.job.version_id, file, 1, 2**31)
            try:
                target.write(file, "".join(f"{line}\n" for line in lines).encode())
            except OSError as error:
                self.log(file, [f"tandem: this log can't be copied to {target.url}: {error}"])
