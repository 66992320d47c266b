"""Traces of a job's tokens: chosen before its steps, recorded by the learners, written beside publishing.

Nothing here may delay a version or fail a job: a fault becomes a warning of the job, or a line of the log if it comes
too late for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Semaphore
from typing import TYPE_CHECKING, Any

from tandem.cluster.artifacts import Artifacts, traces_key
from tandem.cluster.config import TrajectoriesConfig
from tandem.cluster.jobs.job import ClaimedJob
from tandem.cluster.jobs.warnings import warning_data

if TYPE_CHECKING:
    from tandem.cluster.jobs.kinds.kind import Batch
    from tandem.rl.packing import PackedSequence
    from tandem.rl.traces.recording import StepTrace

logger = logging.getLogger(__name__)
MAX_WAITING = 8  # jobs whose rows wait in memory to be written
NOT_KEPT = "traces_not_kept"
"""The warning's kind."""

Recorded = Callable[[], "StepTrace"]
"""Waits for what the learners have recorded of a job."""


def untraced(rows: Sequence[PackedSequence]) -> list[PackedSequence]:
    """Return the rows, of which nothing is traced."""
    from tandem.rl.traces.choosing import traced_row

    return [traced_row(row, set()) for row in rows]


class JobTraces:
    """The traces of all jobs that a coordinator runs.

    trace = traces.begin(claim, batch)
    rows = trace.step(rows)           # before each gradient step; the learner gets the returned rows
    trace.write(training.traces())    # after the last one; returns at once
    trace.warnings()                  # before the job ends
    """

    def __init__(
        self, artifacts: Artifacts, settings: TrajectoriesConfig, keeps: Callable[[str], bool] = lambda entity: True
    ):
        """`keeps` says of an entity whether it lets anything be kept."""
        self._artifacts, self._settings, self._keeps = artifacts, settings, keeps
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="traces")
        self._room = Semaphore(MAX_WAITING)

    def begin(self, claim: ClaimedJob, batch: Batch) -> JobTrace:
        """Choose what is traced of a job."""
        groups, not_kept = set[int](), dict[int, int]()
        if self._settings.traces != "none" and self._keeps(claim.policy.partition("/")[0]):
            groups, not_kept = self._chosen(batch)
        return JobTrace(self, claim, batch, groups, not_kept)

    def _chosen(self, batch: Batch) -> tuple[set[int], dict[int, int]]:
        from tandem.rl.traces.choosing import chosen_groups

        limit = self._settings.trace_groups if self._settings.traces == "sample" else None
        groups, not_kept = chosen_groups(batch.traced, batch.sequences, self._settings.max_trace_bytes, limit)
        return groups, dict(not_kept)

    def submit(self, trace: JobTrace, recorded: Recorded) -> Future[None]:
        """Have the traces written. Raises RuntimeError if too many jobs wait already."""
        if not self._room.acquire(blocking=False):
            raise RuntimeError(f"the traces of {MAX_WAITING} jobs wait to be written already")
        return self._writer.submit(self._write, trace, recorded)

    def _write(self, trace: JobTrace, recorded: Recorded) -> None:
        from tandem.rl.traces.assembly import assemble
        from tandem.rl.traces.trace_file import write_traces

        claim = trace.claim
        try:
            groups = assemble(trace.batch.traced, trace.steps, recorded())
            self._artifacts.delete_traces(claim.id)  # of an attempt that made no version
            content = write_traces(groups, claim.kind, trace.not_kept)
            self._artifacts.write_blob(traces_key(claim.id, claim.attempt), content)
        except Exception:
            logger.warning("The traces of job %s weren't written", claim.id, exc_info=True)
            raise
        finally:
            trace.forget_rows()
            self._room.release()


class JobTrace:
    """The traces of one attempt of a job."""

    def __init__(
        self, traces: JobTraces, claim: ClaimedJob, batch: Batch, groups: set[int], not_kept: Mapping[int, int]
    ):
        self._traces, self.claim, self.batch = traces, claim, batch
        self._groups, self.not_kept = groups, not_kept
        self.steps: list[list[PackedSequence]] = []
        self._written: Future[None] | None = None
        self._fault: Exception | None = None

    def step(self, rows: Sequence[PackedSequence]) -> list[PackedSequence]:
        """Return the rows of the next gradient step, of which only the chosen groups are traced."""
        from tandem.rl.traces.choosing import traced_row

        traced = [traced_row(row, self._groups) for row in rows]
        if self._groups:
            self.steps.append(traced)
        return traced

    def write(self, recorded: Callable[[], Recorded]) -> None:
        """Write what was recorded, in the background. `recorded` asks the learners for it, without waiting."""
        if not self._groups:
            return
        try:
            self._written = self._traces.submit(self, recorded())
        except Exception as error:
            self.forget_rows()
            logger.warning("The traces of job %s aren't written", self.claim.id, exc_info=True)
            self._fault = error

    def forget_rows(self) -> None:
        self.steps = []

    def warnings(self) -> list[dict[str, Any]]:
        """Return the data of warnings about what isn't kept, as far as it is known by now."""
        found = []
        if self.not_kept:
            number = sum(self.not_kept.values())
            message = (
                f"{number} trained tokens of {len(self.not_kept)} groups have no traces: trajectories.traces and "
                "trajectories.max_trace_bytes limit them. They were trained all the same."
            )
            found.append(warning_data(NOT_KEPT, message, {"tokens": number, "groups": len(self.not_kept)}))
        if fault := self._fault or self._error():
            message = (
                f"The traces of the job weren't written ({type(fault).__name__}: {fault}). It trained all the same."
            )
            found.append(warning_data(NOT_KEPT, message, {"files": 1}))
        return found

    def _error(self) -> BaseException | None:
        return self._written.exception() if self._written is not None and self._written.done() else None
