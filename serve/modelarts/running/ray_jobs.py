"""The job server of the Ray cluster that this process is connected to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from tandem.cluster.errors import ClusterError
from tandem.cluster.processes.deadlines import within
from tandem.serve.modelarts.running.user_program import UserProgram

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


CALL_S = 30.0
SUBMIT_S = 600.0  # includes the upload of the code
_NOT_FOUND = "status code 404"  # Ray's client gives no other sign; a bare "404" could be part of an id


class RayJobsError(ClusterError, RuntimeError):
    """Ray's job server can't be reached or rejects a call. The message says why."""


class RayJobState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def has_ended(self) -> bool:
        return self in (RayJobState.SUCCEEDED, RayJobState.FAILED, RayJobState.STOPPED)


@dataclass(frozen=True)
class RayJob:
    state: RayJobState
    message: str
    """Ray's explanation of the state."""


class RayJobs:
    """Submits, watches and stops Ray jobs. Each call is one request to the job server.

    All methods raise RayJobsError. Ray's client sets no timeout, so each call has a deadline here.
    """

    def __init__(self) -> None:
        self._client: JobSubmissionClient | None = None

    def submit(self, id: str, program: UserProgram) -> None:
        """Submit a program."""
        import ray

        has_one_worker = program.num_workers == 1
        self._call(
            "submit_job",
            timeout_s=SUBMIT_S,
            submission_id=id,
            entrypoint=program.entrypoint(ray.get_runtime_context().gcs_address),
            # Several workers get their resources from a placement group, and their leader needs almost none.
            entrypoint_num_cpus=program.spec.num_cpus if has_one_worker else 0,
            entrypoint_num_gpus=program.spec.num_gpus if has_one_worker else 0,
            runtime_env={"working_dir": str(program.directory), "env_vars": program.environment()},
        )

    def find(self, id: str) -> RayJob | None:
        """Return a job. Returns None if it was never submitted to this cluster, or its cluster has ended."""
        from ray.job_submission import JobStatus

        try:
            details = self._call("get_job_info", id)
        except RayJobsError as error:
            if _NOT_FOUND in str(error):
                return None
            raise
        state = {
            JobStatus.PENDING: RayJobState.WAITING,
            JobStatus.RUNNING: RayJobState.RUNNING,
            JobStatus.SUCCEEDED: RayJobState.SUCCEEDED,
            JobStatus.FAILED: RayJobState.FAILED,
            JobStatus.STOPPED: RayJobState.STOPPED,
        }[details.status]
        return RayJob(state, details.message or "")

    def stop(self, id: str) -> None:
        """Stop a program with SIGTERM, and with SIGKILL a few seconds later. A waiting job leaves the queue."""
        self._call("stop_job", id)
        job = self.find(id)
        if job is not None and job.state is RayJobState.WAITING:
            self._kill_supervisor(id)

    @staticmethod
    def _kill_supervisor(id: str) -> None:
        """Kill the actor that would start the program: it handles a stop only after it has been placed."""
        import ray
        from ray.dashboard.modules.job.common import JOB_ACTOR_NAME_TEMPLATE, SUPERVISOR_ACTOR_RAY_NAMESPACE

        with suppress(ValueError):  # the actor has ended in the meantime
            name = JOB_ACTOR_NAME_TEMPLATE.format(job_id=id)
            ray.kill(ray.get_actor(name, namespace=SUPERVISOR_ACTOR_RAY_NAMESPACE))

    def output(self, id: str) -> str:
        """Return the program's whole output so far."""
        return str(self._call("get_job_logs", id))

    def follow(self, id: str, take: Callable[[str], None]) -> None:
        """Pass the program's output to `take`, from its beginning, until the program ends."""

        async def follow() -> None:
            async for text in self._connected().tail_job_logs(id):
                take(text)

        try:
            asyncio.run(follow())
        except Exception as error:
            raise RayJobsError(f"The output of Ray job {id} can't be followed: {error}") from error

    def _connected(self) -> JobSubmissionClient:
        if self._client is None:
            import ray
            from ray.job_submission import JobSubmissionClient

            self._client = JobSubmissionClient(ray.get_runtime_context().gcs_address)
        return self._client

    def _call(self, name: str, *args: Any, timeout_s: float = CALL_S, **kwargs: Any) -> Any:
        try:
            return within(timeout_s, lambda: getattr(self._connected(), name)(*args, **kwargs), f"ray-{name}")
        except TimeoutError as error:
            raise RayJobsError(f"Ray's job server hasn't answered {name} within {timeout_s:g} s.") from error
        except Exception as error:
            raise RayJobsError(f"Ray's job server rejected {name}: {error}") from error
