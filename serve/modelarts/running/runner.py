"""Claims jobs, runs each in a thread, and records how it ended."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.cluster.telemetry.context import logged_with
from tandem.serve.errors import ServeError, UnavailableError
from tandem.serve.jobs.supervision import RunnerStoppedError
from tandem.serve.modelarts.running.algorithm_job import AlgorithmJob
from tandem.serve.modelarts.running.boot_job import BootJob
from tandem.serve.modelarts.running.ray_jobs import RayJobs
from tandem.serve.modelarts.running.supervision import JobFailedError, Supervision
from tandem.serve.modelarts.settings.project_storage import StorageError
from tandem.serve.modelarts.settings.projects import project_storage
from tandem.serve.modelarts.settings.resource_specs import available_specs, find_spec
from tandem.serve.modelarts.store.claims import ClaimedUserJob
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.modelarts.store.store import ModelArtsStore
from tandem.serve.store.store import Store

logger = logging.getLogger(__name__)
POLL_S = 0.5


class JobRunner:
    """Runs all jobs of this API. Any number of runners can share a store: each job has one claim at a time."""

    def __init__(self, config: TandemConfig, store: ModelArtsStore, service_store: Store, artifacts: Artifacts):
        self._config, self._store, self._service_store, self._artifacts = config, store, service_store, artifacts
        self._ray = RayJobs()
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._threads: list[threading.Thread] = []

    def run(self, stop: threading.Event) -> None:
        """Run jobs until `stop` is set. Jobs that still run are released, and continue with the next runner."""
        while not stop.is_set():
            try:
                job = self._store.claims.claim(self._owner, self._config.coordinator.lease_s)
            except Exception:
                logger.exception("Claiming a job failed; retrying")
                job = None
            if job is None:
                stop.wait(POLL_S)
                continue
            thread = threading.Thread(target=self._supervise, args=(job, stop), name=f"job-{job.name}", daemon=True)
            thread.start()
            self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        for thread in self._threads:
            thread.join(5)

    def _supervise(self, job: ClaimedUserJob, stop: threading.Event) -> None:
        with logged_with(job_id=f"{job.project}/{job.name}/{job.version_id}"):
            self._supervise_job(job, stop)

    def _supervise_job(self, job: ClaimedUserJob, stop: threading.Event) -> None:
        lease_s = self._config.coordinator.lease_s
        try:
            with Supervision(self._store, job, lease_s, stop) as supervision:
                try:
                    status, error = self._run(job, supervision)
                except RunnerStoppedError:
                    supervision.flush()
                    self._store.claims.release(job)
                    return
                supervision.flush()
                self._store.claims.end(job, status, error)
        except LeaseLostError as error:
            logger.warning("%s", error)
        except Exception:  # most likely the store; the claim expires, and a runner claims the job again
            logger.exception("Version %d of job %s is left until its claim expires", job.version_id, job.name)

    def _run(self, job: ClaimedUserJob, supervision: Supervision) -> tuple[UserJobStatus, str | None]:
        try:
            self._job(job, supervision).run()
        except (RunnerStoppedError, LeaseLostError, UnavailableError):
            raise
        except JobCancelledError:
            return UserJobStatus.KILLED, "A user stopped the job."
        except JobFailedError as error:
            return error.status, str(error)
        except (ServeError, StorageError) as error:
            return UserJobStatus.FAILED, str(error)
        except Exception as error:
            logger.exception("Job %s failed", job.name)
            return UserJobStatus.FAILED, f"Unexpected {type(error).__name__}: {error}. See the log of the job runner."
        return UserJobStatus.COMPLETED, None

    def _job(self, job: ClaimedUserJob, supervision: Supervision) -> BootJob | AlgorithmJob:
        storage = project_storage(self._config, job.project)
        if job.settings.get("model_id") is not None:
            return AlgorithmJob(
                supervision, self._store.datasets, self._service_store, storage, self._artifacts, self._config
            )
        spec_id = job.settings["spec_id"]
        spec = find_spec(available_specs(self._config), spec_id)
        if spec is None:
            raise JobFailedError(
                f"spec_id: the cluster no longer has resource specification {spec_id}. Choose another one.",
                UserJobStatus.SUBMIT_FAILED,
            )
        return BootJob(supervision, self._store, storage, self._ray, spec)
