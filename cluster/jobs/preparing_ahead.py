"""The batch of the job that comes next, made while the learners work on the one before."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tandem.cluster.jobs.job import JobStore, QueuedJob
from tandem.cluster.jobs.preparation import TICK_S, Preparation

if TYPE_CHECKING:
    from tandem.rl.batch import TrainingBatch

logger = logging.getLogger(__name__)
LOOK_PERIOD_S = 0.5


@dataclass
class _Work:
    """One look at the queue, and what it led to."""

    job_id: str | None = None
    batch: TrainingBatch | None = None
    is_done: threading.Event = field(default_factory=threading.Event)


class PreparingAhead:
    """Prepares at most one job of a base model ahead of its claim.

        ahead.look()                       # again and again, while the learners are busy
        batch = ahead.batch(job, tick)     # of a job that was claimed

    A batch follows from the job alone, so it doesn't matter when it is made, nor whether it is used. A failure is left
    to the job itself, which is prepared again then and says what is wrong.
    """

    def __init__(self, base_model: str, store: JobStore, preparation: Preparation):
        self._base_model, self._store, self._preparation = base_model, store, preparation
        self._work = _Work()
        self._work.is_done.set()
        self._next_look = 0.0

    def look(self) -> None:
        """Begins with the job that will probably be claimed next, unless it is ready or under way. Doesn't wait."""
        now = time.monotonic()
        if now < self._next_look or not self._work.is_done.is_set():
            return
        self._next_look = now + LOOK_PERIOD_S
        done, self._work = self._work, _Work()
        threading.Thread(
            target=self._prepare_next, args=(self._work, done), daemon=True, name="preparing-ahead"
        ).start()

    def batch(self, job: QueuedJob, tick: Callable[[], None]) -> TrainingBatch:
        """The job's batch, as `Preparation.batch` makes it and with its errors."""
        work = self._work
        while work.job_id == job.id and not work.is_done.wait(TICK_S):
            tick()
        if work.job_id == job.id and work.batch is not None:
            batch, work.batch = work.batch, None
            return batch
        return self._preparation.batch(self._base_model, job, tick)

    def _prepare_next(self, work: _Work, before: _Work) -> None:
        try:
            job = self._store.next_queued(self._base_model)
            if job is None:
                return
            work.job_id = job.id
            if before.job_id == job.id:  # also when that failed: once is enough
                work.batch = before.batch
            else:
                work.batch = self._preparation.batch(self._base_model, job)
        except Exception:
            logger.info("Job %s of %s isn't prepared ahead", work.job_id, self._base_model, exc_info=True)
        finally:
            work.is_done.set()
