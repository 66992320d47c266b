"""The coordinator: claims a training job, runs its stages, and records how it ended."""

from __future__ import annotations

import logging
import os
import socket
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
from tandem.cluster.jobs.running_job import RunningJob, ServiceStop
from tandem.cluster.jobs.stages import JobStages

logger = logging.getLogger(__name__)


class Coordinator:
    """Runs the jobs of one base model on its learners, one at a time.

    A job takes effect in one transaction at its end (`JobStore.complete`), fenced by the claim's attempt. Whatever
    happens before (a crash, a lost lease, a dead learner) leaves the model's newest version as it was. The next attempt
    starts from there and repeats the same work, because the order of the batch follows from the job's id.
    """

    def __init__(self, settings: CoordinatorConfig, store: JobStore, stages: JobStages):
        self._settings, self._store, self._stages = settings, store, stages
        self._name = stages.base.name
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stop = ServiceStop(settings.stop_grace_s)
        self.running_job: str | None = None
        self.last_error: str | None = None

    def run(self) -> None:
        """Run jobs until `stop`. A failure of the store is logged and shown in `last_error`, then retried."""
        while not self._stop.is_requested:
            try:
                worked = self.run_next()
                self.last_error = None
            except Exception as error:
                logger.exception("The coordinator of %s failed outside a job", self._name)
                self.last_error = f"{type(error).__name__}: {error}"
                worked = False
            if not worked:
                self._stop.wait(self._settings.poll_s)

    def stop(self) -> None:
        """Claim no more jobs. A running one may continue for `stop_grace_s`, then it is handed back."""
        self._stop.request()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_requested

    def run_next(self) -> bool:
        """Claim one job and run it to its end. Return False if none is queued."""
        claim = self._store.claim_next(self._name, self._owner, self._settings.lease_s)
        if claim is None:
            return False
        self.running_job = claim.id
        try:
            with RunningJob(claim, self._store, self._settings.lease_s, self._stop) as job:
                self._run_to_its_end(job)
        except LeaseLostError as error:
            logger.warning("Job %s was given up: %s", claim.id, error)
        finally:
            self.running_job = None
        return True

    def _run_to_its_end(self, job: RunningJob) -> None:
        claim, max_attempts = job.claim, self._settings.max_attempts
        if claim.num_tries > max_attempts:
            self._store.fail(claim, _interrupted_too_often(max_attempts))
            return
        try:
            version, metrics = self._stages.train(job)
            self._store.complete(claim, version, metrics)
            logger.info("Job %s made version %d of model %s", claim.id, claim.next_step, claim.model_id)
        except JobCancelledError:
            self._store.cancel(claim)
        except ServiceStopsError as error:
            logger.info("Job %s is handed back", claim.id)
            self._store.hand_back(claim, str(error))
        except (LeaseLostError, StoreUnavailableError):  # another attempt begins when the lease has run out
            raise
        except StageError as error:
            logger.warning("Job %s, attempt %d: %s", claim.id, claim.attempt, error)
            if error.retryable and claim.num_tries < max_attempts:
                self._store.requeue(claim, str(error))
            else:
                self._store.fail(claim, f"{error} (attempt {claim.num_tries} of {max_attempts})")
        except Exception as error:
            logger.exception("Job %s failed", claim.id)
            self._store.fail(claim, _unexpected(claim, error))


def _interrupted_too_often(max_attempts: int) -> str:
    return (
        f"Each of {max_attempts} attempts was interrupted: the coordinator's process ended, or the store accepted no "
        "writes. If the process ended, this job may be the cause: check the node's memory and the coordinator's log, "
        "and post a smaller job."
    )


def _unexpected(claim: ClaimedJob, error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"Unexpected {type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno}). "
        f"The coordinator's log has the traceback of job {claim.id}."
    )
