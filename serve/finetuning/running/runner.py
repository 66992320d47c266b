"""Claims fine-tuning jobs, runs each in a thread, and records how it ended."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta

from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.cluster.telemetry.context import logged_with
from tandem.rl.errors import ConfigError
from tandem.serve.errors import ServeError, UnavailableError
from tandem.serve.finetuning.files import remove_leftovers, remove_unused
from tandem.serve.finetuning.running.context import RunnerServices
from tandem.serve.finetuning.running.fine_tuning import FineTuning
from tandem.serve.finetuning.running.supervision import JobFailedError, Supervision
from tandem.serve.finetuning.store.claims import ClaimedFineTuning
from tandem.serve.finetuning.store.store import FineTuningStore
from tandem.serve.jobs.supervision import RunnerStoppedError

logger = logging.getLogger(__name__)
POLL_S = 0.5
MAX_RUNNING = 32
"""Jobs of one runner at a time. Others stay queued."""
SWEEP_PERIOD_S = 600.0
MIN_AGE_S = 2 * 3600.0


class FineTuningRunner:
    """Runs all jobs of this API. Any number of runners can share a store: each job has one claim at a time."""

    def __init__(self, services: RunnerServices):
        self._services = services
        self._store = FineTuningStore(services.store.database)
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._threads: list[threading.Thread] = []
        self._swept_at = -SWEEP_PERIOD_S

    def run(self, stop: threading.Event) -> None:
        """Run jobs until `stop` is set. Jobs that still run are released, and continue with the next runner."""
        while not stop.is_set():
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            job = self._claim()
            if job is None:
                stop.wait(POLL_S)
                continue
            thread = threading.Thread(target=self._supervise, args=(job, stop), name=job.id, daemon=True)
            thread.start()
            self._threads.append(thread)
        for thread in self._threads:
            thread.join(5)

    def _claim(self) -> ClaimedFineTuning | None:
        if len(self._threads) >= MAX_RUNNING:
            return None
        try:
            self._sweep()
            return self._store.claims.claim(self._owner, self._services.config.coordinator.lease_s)
        except Exception:
            logger.exception("Claiming a fine-tuning job failed; retrying")
            return None

    def _sweep(self) -> None:
        if time.monotonic() - self._swept_at > SWEEP_PERIOD_S:
            self._swept_at = time.monotonic()
            before = datetime.now(UTC) - timedelta(seconds=MIN_AGE_S)
            remove_unused(self._store, self._services.artifacts)
            remove_leftovers(self._store, self._services.artifacts, before)

    def _supervise(self, job: ClaimedFineTuning, stop: threading.Event) -> None:
        with logged_with(job_id=job.id):
            self._supervise_job(job, stop)

    def _supervise_job(self, job: ClaimedFineTuning, stop: threading.Event) -> None:
        claims = self._store.claims
        try:
            with Supervision(claims, job, self._services.config.coordinator.lease_s, stop) as supervision:
                try:
                    self._run(job, supervision)
                except RunnerStoppedError:
                    claims.release(job)
                    return
            remove_unused(self._store, self._services.artifacts)
        except LeaseLostError as error:
            logger.warning("%s", error)
        except Exception:  # most likely the store; the claim expires, and a runner claims the job again
            logger.exception("%s is left until its claim expires", job.id)

    def _run(self, job: ClaimedFineTuning, supervision: Supervision) -> None:
        claims = self._store.claims
        try:
            FineTuning(job, supervision, self._services, self._store).run()
        except (RunnerStoppedError, LeaseLostError, UnavailableError):
            raise
        except JobCancelledError:
            claims.cancel(job)
        except JobFailedError as error:
            claims.fail(job, error.code, str(error), error.param)
        except (ServeError, ConfigError) as error:
            claims.fail(job, getattr(error, "code", "training_failed"), str(error), None)
        except Exception as error:
            logger.exception("%s failed", job.id)
            reason = f"Unexpected {type(error).__name__}: {error}. See the log of the job runner."
            claims.fail(job, "internal_error", reason, None)
