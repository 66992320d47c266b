"""The coordinator: claims a training job, runs its stages, and records how it ended."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tandem.cluster.config import CoordinatorConfig
from tandem.cluster.errors import (
    JobCancelledError,
    LearnersLostError,
    LeaseLostError,
    ServiceStopsError,
    StageError,
    StoreUnavailableError,
)
from tandem.cluster.jobs.job import ClaimedJob, JobStore
from tandem.cluster.jobs.phases import Outcome, PhaseListener
from tandem.cluster.jobs.running_job import RunningJob, ServiceStop
from tandem.cluster.jobs.stages import JobStages
from tandem.cluster.jobs.tracing import record_end, traced

logger = logging.getLogger(__name__)
CHANGE_POLL_S = 0.05  # a look takes 20 microseconds


class Coordinator:
    """Runs the jobs of one base model on its learners, up to `learners.jobs_at_once` of different models together.

    Each job has a thread. The learners give them turns, so that one job is prepared or published while another one
    takes its gradient steps (`cluster.learners.turns`).

    A job takes effect in one transaction at its end (`JobStore.complete`), fenced by the claim's attempt. Whatever
    happens before (a crash, a lost lease, a dead learner) leaves the model's newest version as it was. The next attempt
    starts from there and repeats the same work, because the order of the batch follows from the job's id.
    """

    def __init__(
        self,
        settings: CoordinatorConfig,
        store: JobStore,
        stages: JobStages,
        listeners: Sequence[PhaseListener] = (),
    ):
        """`listeners` are told about the phases of the jobs, which the store records, too."""
        self._settings, self._store, self._stages, self._listeners = settings, store, stages, listeners
        self._name = stages.base.name
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stop = ServiceStop(settings.stop_grace_s)
        self._running: list[ClaimedJob] = []
        self._look = threading.Event()  # a job may be claimable
        self._counted = stages.counted
        self.last_error: str | None = None

    def run(self) -> None:
        """Run jobs until `stop`. A failure of the store is logged and shown in `last_error`, then retried."""
        at_once = self._stages.base.learners.jobs_at_once
        with ThreadPoolExecutor(at_once, thread_name_prefix=f"jobs of {self._name}") as jobs:
            while not self._stop.is_requested:
                self._look.clear()
                mark = self._store.change_mark()
                claim = self._claim_or_log() if len(self._running) < at_once else None
                if claim is None:
                    self._wait_for_change(mark)
                else:
                    jobs.submit(self._run_or_log, claim)

    def _wait_for_change(self, mark: object | None) -> None:
        """Return when the store has changed since `mark`, when a job has ended, or after `poll_s`."""
        end = time.monotonic() + self._settings.poll_s
        while (remaining := end - time.monotonic()) > 0:
            if self._look.wait(remaining if mark is None else min(CHANGE_POLL_S, remaining)):
                return
            if mark is not None and self._store.change_mark() != mark:
                return

    def stop(self) -> None:
        """Claim no more jobs. Running ones may continue for `stop_grace_s`, then they are handed back."""
        self._stop.request()
        self._look.set()

    @property
    def running_jobs(self) -> list[str]:
        """The ids of the jobs that run, the oldest claim first."""
        return [claim.id for claim in self._running]

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_requested

    def run_next(self) -> bool:
        """Claim one job and run it to its end in this thread. Return False if none is queued."""
        claim = self._claim()
        if claim is None:
            return False
        self._run_job(claim)
        return True

    def _claim(self) -> ClaimedJob | None:
        claim = self._store.claim_next(self._name, self._owner, self._settings.lease_s)
        if claim is not None:
            self._running.append(claim)
        return claim

    def _claim_or_log(self) -> ClaimedJob | None:
        try:
            claim = self._claim()
            self.last_error = None
        except Exception as error:
            self._log(error)
            return None
        return claim

    def _run_or_log(self, claim: ClaimedJob) -> None:
        try:
            self._run_job(claim)
        except Exception as error:
            self._log(error)

    def _log(self, error: Exception) -> None:
        logger.error("The coordinator of %s failed outside a job", self._name, exc_info=error)
        self.last_error = f"{type(error).__name__}: {error}"

    def _run_job(self, claim: ClaimedJob) -> None:
        with traced(claim):
            self._run_claimed(claim)

    def _run_claimed(self, claim: ClaimedJob) -> None:
        logger.info("Claimed job %s, attempt %d, from version %d", claim.id, claim.attempt, claim.version.step)
        try:
            with RunningJob(claim, self._store, self._settings.lease_s, self._stop, self._listeners) as job:
                self._run_to_its_end(job)
        except LeaseLostError as error:
            self._counted.lost_lease()
            logger.warning("Job %s was given up: %s", claim.id, error)
        finally:
            self._running.remove(claim)
            self._look.set()  # the model's next job can be claimed

    def _run_to_its_end(self, job: RunningJob) -> None:
        claim, max_attempts = job.claim, self._settings.max_attempts
        if claim.num_tries > max_attempts:
            self._end(job, "failed", lambda: self._store.fail(claim, _interrupted_too_often(max_attempts)))
            self._counted.failed("attempts", "failed")
            return
        try:
            version, metrics = self._stages.train(job)
            self._end(job, "succeeded", lambda: self._store.complete(claim, version, metrics))
            logger.info("Job %s made version %d of model %s", claim.id, claim.next_step, claim.model_id)
        except JobCancelledError:
            self._end(job, "cancelled", lambda: self._store.cancel(claim))
        except (ServiceStopsError, LearnersLostError) as error:
            logger.info("Job %s is handed back: %s", claim.id, error)
            reason = str(error)
            self._end(job, "handed_back", lambda: self._store.hand_back(claim, reason))
            if isinstance(error, LearnersLostError):
                self._counted.failed("learners", "learners_lost")
        except LeaseLostError:
            raise
        except StoreUnavailableError:  # another attempt begins when the lease has run out
            self._counted.failed("store", "store_unavailable")
            raise
        except StageError as error:
            logger.warning("Job %s, attempt %d: %s", claim.id, claim.attempt, error)
            if error.retryable and claim.num_tries < max_attempts:
                reason = str(error)
                self._end(job, "requeued", lambda: self._store.requeue(claim, reason))
                self._counted.failed(error.stage, "retried")
            else:
                reason = f"{error} (attempt {claim.num_tries} of {max_attempts})"
                about = {"stage": error.stage, "cause": error.cause, "remedy": error.remedy}
                self._end(job, "failed", lambda: self._store.fail(claim, reason, about), reason)
                self._counted.failed(error.stage, "failed")
        except Exception as error:
            logger.exception("Job %s failed", claim.id)
            reason = _unexpected(claim, error)
            self._end(job, "failed", lambda: self._store.fail(claim, reason), reason)
            self._counted.failed("unexpected", "unexpected")

    def _end(self, job: RunningJob, outcome: Outcome, write: Callable[[], None], error: str | None = None) -> None:
        with job.clock.phase("record"):
            write()
        job.outcome = outcome
        record_end(job.claim, outcome, error)
        self._counted.ended(outcome)


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
