"""The batch of the next job, prepared while the learners work on the current one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tandem.cluster.jobs.job import JobStore, QueuedJob
from tandem.cluster.jobs.preparation import OnCpu, Preparation, unmeasured
from tandem.cluster.processes.waiting import WAIT_PERIOD_S, OnWait

if TYPE_CHECKING:
    from tandem.cluster.jobs.kinds.kind import Batch

logger = logging.getLogger(__name__)
LOOK_PERIOD_S = 0.5


@dataclass(frozen=True)
class _Foreseen:
    """The job that will probably be claimed next, and its batch."""

    job_id: str
    batch: Future[Batch] = field(default_factory=Future)
    cpu_seconds: list[float] = field(default_factory=list)
    """Of its preparation."""


class PreparingAhead:
    """Prepares at most one job of a base model before it is claimed.

        with ahead.while_training():
            ...                                # the learners are busy with a job
        batch = ahead.batch(next_job, on_wait)

    A batch depends on the job alone, so it doesn't matter when it is made or whether it is used. If its preparation
    fails, the job is prepared again once it is claimed, and that attempt reports the error.
    """

    def __init__(self, base_model: str, store: JobStore, preparation: Preparation):
        self._base_model, self._store, self._preparation = base_model, store, preparation
        self._foreseen: _Foreseen | None = None
        self._one_at_a_time = threading.Lock()

    @contextmanager
    def while_training(self) -> Iterator[None]:
        """Look for the next job in the background. A preparation that has begun continues after the block."""
        stop = threading.Event()
        threading.Thread(target=self._look, args=(stop,), daemon=True, name="preparing-ahead").start()
        try:
            yield
        finally:
            stop.set()

    def batch(self, job: QueuedJob, on_wait: OnWait, on_cpu: OnCpu = unmeasured) -> Batch:
        """Return the job's batch, as `Preparation.batch` makes it and with its errors.

        `on_cpu` is given the CPU seconds of the preparation, also of one that was made ahead.
        """
        foreseen = self._foreseen
        if foreseen is not None and foreseen.job_id == job.id:
            while not wait([foreseen.batch], WAIT_PERIOD_S).done:
                on_wait()
            if foreseen.batch.exception() is None:
                self._foreseen = None
                on_cpu(sum(foreseen.cpu_seconds))
                return foreseen.batch.result()
        return self._preparation.batch(self._base_model, job, on_wait, on_cpu)

    def _look(self, stop: threading.Event) -> None:
        while not stop.is_set():
            if self._one_at_a_time.acquire(blocking=False):
                try:
                    self._prepare_next()
                finally:
                    self._one_at_a_time.release()
            stop.wait(LOOK_PERIOD_S)

    def _prepare_next(self) -> None:
        try:
            job = self._store.next_queued(self._base_model)
        except Exception:
            logger.info("The store didn't answer which job of %s comes next", self._base_model, exc_info=True)
            return
        if job is None or (self._foreseen is not None and self._foreseen.job_id == job.id):  # even if it failed
            return
        self._foreseen = foreseen = _Foreseen(job.id)
        try:
            batch = self._preparation.batch(self._base_model, job, on_cpu=foreseen.cpu_seconds.append)
            foreseen.batch.set_result(batch)
        except Exception as error:
            logger.info("Job %s of %s isn't prepared ahead", job.id, self._base_model, exc_info=True)
            foreseen.batch.set_exception(error)
