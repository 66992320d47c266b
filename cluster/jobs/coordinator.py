"""Leads training jobs: claims one, sees it through its stages, and writes down how it ended."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import traceback
import uuid

from tandem.cluster.config import CoordinatorConfig
from tandem.cluster.errors import (
    JobCancelledError,
    LeaseLostError,
    ServiceStopsError,
    StageError,
    StoreUnavailableError,
)
from tandem.cluster.jobs.job import ClaimedJob, JobStore
from tandem.cluster.jobs.lease import LeaseKeeper
from tandem.cluster.jobs.stages import JobStages

logger = logging.getLogger(__name__)


class Coordinator:
    """Leads the jobs of one base model through its learners, one at a time.

    A job's effect is one transaction at its end (`JobStore.complete`), fenced by the claim's attempt. Whatever happens
    before it (a crash, a lost lease, a dead learner) leaves the model's newest version as it was, and the next attempt
    starts from there and does the same work again: the batch order is drawn from the job's id.
    """

    def __init__(self, settings: CoordinatorConfig, store: JobStore, stages: JobStages):
        self._settings, self._store, self._stages = settings, store, stages
        self._name = stages.base.name
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stopping = threading.Event()
        self._stop_by = float("inf")
        self.running_job: str | None = None
        self.last_error: str | None = None

    def run(self) -> None:
        """Works until `stop`. Survives failures of the store: it says so and tries again."""
        while not self._stopping.is_set():
            try:
                worked = self.run_next()
                self.last_error = None
            except Exception as error:
                logger.exception("The coordinator of %s failed outside a job", self._name)
                self.last_error = f"{type(error).__name__}: {error}"
                worked = False
            if not worked:
                self._stopping.wait(self._settings.poll_s)

    def stop(self) -> None:
        """No job is claimed any more. A running one may go on for `stop_grace_s`; then it is handed back."""
        self._stop_by = time.monotonic() + self._settings.stop_grace_s
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def check_grace(self) -> None:
        """Raises ServiceStopsError when the service stops and the grace has passed."""
        if time.monotonic() > self._stop_by:
            raise ServiceStopsError("The service was stopped; the job goes on when it is back.")

    def run_next(self) -> bool:
        """Claims and runs one job. False when none is waiting."""
        job = self._store.claim_next(self._name, self._owner, self._settings.lease_s)
        if job is None:
            return False
        self.running_job, lease_s = job.id, self._settings.lease_s
        try:
            with LeaseKeeper(lambda: self._store.renew(job, lease_s), lease_s, f"job {job.id}") as lease:
                self._run_to_its_end(job, lease)
        except LeaseLostError as error:
            logger.warning("Job %s was given up: %s", job.id, error)
        finally:
            self.running_job = None
        return True

    def _run_to_its_end(self, job: ClaimedJob, lease: LeaseKeeper) -> None:
        if job.num_tries > self._settings.max_attempts:
            self._store.fail(
                job,
                f"Each of {self._settings.max_attempts} attempts broke off: the coordinator's process ended, or the "
                "store took no writes. If it was the process, this job may be what ends it: look at the node's memory "
                "and the coordinator's log, and post a smaller job.",
            )
            return
        try:
            self._train(job, lease)
        except JobCancelledError:
            self._store.cancel(job)
        except ServiceStopsError as error:
            logger.info("Job %s is handed back", job.id)
            self._store.hand_back(job, str(error))
        except (LeaseLostError, StoreUnavailableError):  # the lease runs out, and then another attempt begins
            raise
        except StageError as error:
            logger.warning("Job %s, attempt %d: %s", job.id, job.attempt, error)
            if error.retryable and job.num_tries < self._settings.max_attempts:
                self._store.requeue(job, str(error))
            else:
                self._store.fail(job, f"{error} (attempt {job.num_tries} of {self._settings.max_attempts})")
        except Exception as error:
            logger.exception("Job %s failed", job.id)
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._store.fail(
                job,
                f"Unexpected {type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno}). "
                f"The coordinator's log has the traceback of job {job.id}.",
            )

    def _train(self, job: ClaimedJob, lease: LeaseKeeper) -> None:
        def tick() -> None:
            lease.check_held()
            self.check_grace()

        def check() -> None:
            lease.check()
            self.check_grace()

        version, metrics = self._stages.train(job, tick, check)
        self._store.complete(job, version, metrics)
        logger.info("Job %s made version %d of model %s", job.id, job.next_step, job.model_id)
