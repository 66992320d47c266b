"""What every supervised job shares: its claim, its log, whether it is to stop."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType

from tandem.cluster.errors import JobCancelledError
from tandem.cluster.jobs.lease import LeaseKeeper
from tandem.serve.modelarts.running.project_storage import Location
from tandem.serve.modelarts.store.claims import ClaimedUserJob
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.modelarts.store.store import ModelArtsStore

MAX_LOG_LINES = 1_000_000
"""Of one worker; a program that writes more has its log cut here, and a line that says so."""
MAX_LINE_CHARS = 16_384


class RunnerStoppedError(Exception):
    """The service ends; the job goes on with the next runner."""


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

    def __init__(self, store: ModelArtsStore, job: ClaimedUserJob, lease_s: float, stop: threading.Event):
        self.job, self._store, self._stop = job, store, stop
        self._lines: dict[str, list[str]] = {}
        self._counts = store.logs.sizes(job)
        self._lock = threading.Lock()
        self._lease = LeaseKeeper(
            lambda: store.claims.renew(job, lease_s), lease_s, f"version {job.version_id} of user job {job.name}"
        )

    def __enter__(self) -> Supervision:
        self._lease.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lease.__exit__(kind, error, trace)

    def wait(self, seconds: float) -> None:
        """Lets time pass and writes the log. Raises RunnerStoppedError, LeaseLostError, and JobCancelledError when the
        user wants the job to end."""
        if self._stop.wait(seconds):
            raise RunnerStoppedError
        self.flush()
        self._lease.check()
        if self.job.stop_requested:
            raise JobCancelledError(f"Job {self.job.name} was to be stopped before this runner took it over.")

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
            self._store.logs.append(self.job, file, lines)

    def copy_logs(self, target: Location, files: Sequence[str]) -> None:
        """Writes the job's log files to a place of the user's. What can't be written is told in the log."""
        self.flush()
        for file in files:
            lines = self._store.logs.read(self.job.version_id, file, 1, 2**31)
            try:
                target.write(file, "".join(f"{line}\n" for line in lines).encode())
            except OSError as error:
                self.log(file, [f"tandem: this log can't be copied to {target.url}: {error}"])

    def status(self, status: UserJobStatus, reason: str | None = None) -> None:
        self._store.claims.set_status(self.job, status, reason)
