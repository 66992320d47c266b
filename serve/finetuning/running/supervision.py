"""Supervise one claimed fine-tuning job."""

from __future__ import annotations

import threading

from tandem.serve.finetuning.store.claims import ClaimedFineTuning, FineTuningClaims
from tandem.serve.jobs.supervision import JobSupervision


class JobFailedError(Exception):
    """The job has failed, and ends with this error."""

    def __init__(self, message: str, code: str = "training_failed", param: str | None = None):
        super().__init__(message)
        self.code, self.param = code, param


class Supervision(JobSupervision):
    def __init__(self, claims: FineTuningClaims, job: ClaimedFineTuning, lease_s: float, stop: threading.Event):
        super().__init__(lambda: claims.renew(job, lease_s), lease_s, f"fine-tuning job {job.id}", stop)
