"""User programs as Ray jobs: submitted, watched, their output read, stopped."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandem.cluster.errors import ClusterError
from tandem.cluster.processes.deadlines import within
from tandem.serve.modelarts.running.resource_specs import ResourceSpec

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


CALL_S = 30.0
SUBMIT_S = 600.0  # the code is uploaded first
_NOT_FOUND = "status code 404"  # Ray's client has no other sign; an id may contain "404" by itself


class RayJobsError(ClusterError, RuntimeError):
    """Ray's job server can't be reached or refuses a job. The message says why."""


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
    """Why it is in this state, in Ray's words."""


@dataclass(frozen=True)
class UserProgram:
    """A boot file with its arguments, on `num_workers` workers."""

    directory: Path
    """The code; the job's working directory."""
    boot_file: str
    """Relative to the code directory."""
    arguments: Sequence[str]
    spec: ResourceSpec
    num_workers: int

    def entrypoint(self, ray_address: str) -> str:
        """A command line of quoted words, so that the shell which Ray starts has nothing to interpret.

        It names the cluster: by itself, Ray gives a job the address of the newest cluster on the machine.
        """
        program = [sys.executable, "-u", self.boot_file, *self.arguments]
        if self.num_workers > 1:
            spec = [str(self.num_workers), str(self.spec.num_cpus), str(self.spec.num_gpus)]
            program = [sys.executable, "-u", "-m", "tandem.serve.modelarts.running.workers", *spec, *program]
        return shlex.join(["env", f"RAY_ADDRESS={ray_address}", *program])


class RayJobs:
    """The jobs of the Ray cluster that this process is connected to. Every call is one request to its job server.

    A request that isn't answered in time raises RayJobsError: Ray's client itself would wait for ever.
    """

    def __init__(self) -> None:
        self._client: JobSubmissionClient | None = None

    def submit(self, id: str, program: UserProgram) -> None:
        """Raises RayJobsError."""
        import ray

        address = ray.get_runtime_context().gcs_address
        alone = program.num_workers == 1
        self._call(
            "submit_job",
            timeout_s=SUBMIT_S,
            submission_id=id,
            entrypoint=program.entrypoint(address),
            # Several workers have their resources in a placement group; what leads them needs next to none.
            entrypoint_num_cpus=program.spec.num_cpus if alone else 0,
            entrypoint_num_gpus=program.spec.num_gpus if alone else 0,
            runtime_env={
                "working_dir": str(program.directory),
                "env_vars": {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
            },
        )

    def find(self, id: str) -> RayJob | None:
        """None when this cluster doesn't know the job: it was never submitted, or the cluster that had it is gone."""
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
        """Asks the program to end (SIGTERM, and SIGKILL a few seconds later), or gives up its place in the queue."""
        self._call("stop_job", id)
        job = self.find(id)
        if job is not None and job.state is RayJobState.WAITING:
            self._end_waiting(id)

    @staticmethod
    def _end_waiting(id: str) -> None:
        """Ends the actor that would start the program: it hears of a stop only once it has been placed."""
        import ray
        from ray.dashboard.modules.job.common import JOB_ACTOR_NAME_TEMPLATE, SUPERVISOR_ACTOR_RAY_NAMESPACE

        with suppress(ValueError):  # it has ended by itself
            name = JOB_ACTOR_NAME_TEMPLATE.format(job_id=id)
            ray.kill(ray.get_actor(name, namespace=SUPERVISOR_ACTOR_RAY_NAMESPACE))

    def output(self, id: str) -> str:
        """All that the program has written so far."""
        return self._call("get_job_logs", id)

    def follow(self, id: str, take: Callable[[str], None]) -> None:
        """Hands on the program's output from its beginning, as it comes, and returns when the program has ended."""

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
            raise RayJobsError(f"Ray's job server refused {name}: {error}") from error
