"""Looks after all jobs of this API: claims them, runs each in a thread, and ends them with their cause."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.serve.errors import ServeError, UnavailableError
from tandem.serve.modelarts.running.algorithm_run import AlgorithmRun
from tandem.serve.modelarts.running.boot_job import BootJob
from tandem.serve.modelarts.running.project_storage import StorageError
from tandem.serve.modelarts.running.projects import project_storage, resource_specs
from tandem.serve.modelarts.running.ray_jobs import RayJobs
from tandem.serve.modelarts.running.resource_specs import find_spec
from tandem.serve.modelarts.running.supervision import JobFailedError, RunnerStoppedError, Supervision
from tandem.serve.modelarts.store.claims import ClaimedUserJob
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.modelarts.store.store import ModelArtsStore
from tandem.serve.store.store import Store

logger = logging.getLogger(__name__)
POLL_S = 0.5


class JobRunner:
    """Runs until `stop` is set. Jobs that run then go on without it: the next runner finds them by their claims."""

    def __init__(self, config: TandemConfig, store: ModelArtsStore, service_store: Store, artifacts: Artifacts):
        self._config, self._store, self._service_store, self._artifacts = config, store, service_store, artifacts
        self._ray = RayJobs()
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._threads: list[threading.Thread] = []

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                job = self._store.claims.claim(self._owner, self._config.coordinator.lease_s)
            except Exception:
                logger.exception("No job can be claimed; trying again")
                job = None
            if job is None:
                stop.wait(POLL_S)
                continue
            thread = threading.Thread(target=self._look_after, args=(job, stop), name=f"job-{job.name}", daemon=True)
            thread.start()
            self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        for thread in self._threads:
            thread.join(5)

    def _look_after(self, job: ClaimedUserJob, stop: threading.Event) -> None:
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
        except Exception:  # the store, most likely: the claim runs out and the job is looked after again
            logger.exception("Version %d of job %s is given up for now", job.version_id, job.name)

    def _run(self, job: ClaimedUserJob, supervision: Supervision) -> tuple[UserJobStatus, str | None]:
        try:
            self._start(job, supervision).run()
        except (RunnerStoppedError, LeaseLostError, UnavailableError):
            raise
        except JobCancelledError:
            return UserJobStatus.KILLED, "It was stopped at the user's request."
        except JobFailedError as error:
            return error.status, str(error)
        except (ServeError, StorageError) as error:
            return UserJobStatus.FAILED, str(error)
        except Exception as error:
            logger.exception("Job %s failed", job.name)
            return UserJobStatus.FAILED, f"Unexpected {type(error).__name__}: {error}. The job runner's log says more."
        return UserJobStatus.COMPLETED, None

    def _start(self, job: ClaimedUserJob, supervision: Supervision) -> BootJob | AlgorithmRun:
        storage = project_storage(self._config, job.project)
        if job.settings.get("model_id") is not None:
            return AlgorithmRun(
                supervision, self._store.datasets, self._service_store, storage, self._artifacts, self._config
            )
        spec_id = job.settings["spec_id"]
        spec = find_spec(resource_specs(self._config), spec_id)
        if spec is None:
            raise JobFailedError(
                f"spec_id: the cluster has no resource specification {spec_id} any more.", UserJobStatus.SUBMIT_FAILED
            )
        return BootJob(supervision, self._store, storage, self._ray, spec)
