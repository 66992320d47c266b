"""A job that runs the user's boot file as a Ray job."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path

from tandem.cluster.errors import JobCancelledError
from tandem.serve.modelarts.running.job_data import data_locations
from tandem.serve.modelarts.running.program_output import ProgramOutput
from tandem.serve.modelarts.running.ray_jobs import RayJob, RayJobs, RayJobsError, RayJobState
from tandem.serve.modelarts.running.supervision import JobFailedError, Supervision, log_file
from tandem.serve.modelarts.running.user_program import UserProgram
from tandem.serve.modelarts.settings.project_storage import ProjectStorage
from tandem.serve.modelarts.settings.resource_specs import ResourceSpec
from tandem.serve.modelarts.settings.run_settings import RunSettings
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.modelarts.store.store import ModelArtsStore

logger = logging.getLogger(__name__)
POLL_S = 0.5
RETRY_S = 2.0
JOB_SERVER_S = 120.0
"""How long Ray's job server may be unreachable before the job counts as lost."""
STOP_S = 60.0
MAX_SUBMISSIONS = 3
SET_BY_SERVICE = ("data_url", "train_url", "num_gpus", "init_method", "rank", "world_size")


class BootJob:
    """One claimed version with a boot file."""

    def __init__(
        self,
        supervision: Supervision,
        store: ModelArtsStore,
        storage: ProjectStorage,
        ray_jobs: RayJobs,
        spec: ResourceSpec,
    ):
        self._supervision, self._store, self._storage = supervision, store, storage
        self._ray, self._spec = ray_jobs, spec
        self._settings = RunSettings.model_validate(supervision.job.settings)
        self._num_workers = self._settings.worker_server_num or 1
        self._log_files = [log_file(rank) for rank in range(self._num_workers)]

    def run(self) -> None:
        """Run the program to its end, or continue to follow it. Returns if it succeeds.

        Raises JobFailedError, and what `Supervision.wait` raises: JobCancelledError after the program has ended.
        """
        id = self._running_submission() or self._submit()
        try:
            self._follow(id)
        except JobCancelledError:
            self._stop(id)
            self._copy_logs()
            raise
        except JobFailedError:
            self._copy_logs()
            raise
        self._copy_logs()

    def _running_submission(self) -> str | None:
        """Return the id of the last submission if Ray knows it. Raises JobFailedError after too many lost ones."""
        number = self._supervision.job.num_submissions
        if not number:
            return None
        if self._find(id := self._id(number)) is not None:
            return id
        if number >= MAX_SUBMISSIONS:
            raise JobFailedError(
                f"The Ray cluster was lost {number} times during this job. Check the cluster's nodes, "
                "then start the job again.",
                UserJobStatus.LOST,
            )
        message = f"tandem: the Ray cluster of this job was lost; restarting the program (submission {number + 1})"
        for file in self._log_files:
            self._supervision.log(file, [message])
        return None

    def _id(self, number: int) -> str:
        return f"{self._supervision.job.submission_prefix}-{number}"

    def _submit(self) -> str:
        """Fetch the code and submit it. Returns the submission's id."""
        self._supervision.wait(0)  # raises if the job is to be stopped
        self._supervision.status(UserJobStatus.SUBMITTING)
        arguments = self._arguments()
        with tempfile.TemporaryDirectory(prefix="tandem-code-") as directory:
            boot_file = self._fetch_code(Path(directory))
            # Counted first: if this runner dies before the submission, the next one finds no job and uses a new id.
            self._supervision.flush()
            id = self._id(self._store.claims.count_submission(self._supervision.job))
            program = UserProgram(Path(directory), boot_file, arguments, self._spec, self._num_workers)
            self._submit_program(id, program)
        return id

    def _fetch_code(self, directory: Path) -> str:
        """Copy the code into the directory. Returns the boot file's path in it."""
        code, boot_file = self._storage.resolve(self._settings.app_url or ""), self._settings.boot_file() or ""
        if not code.is_directory():
            raise JobFailedError(f"app_url: there is no directory {code.url}.", UserJobStatus.SUBMIT_FAILED)
        code.fetch(directory)
        if not (directory / boot_file).is_file():
            raise JobFailedError(
                f"boot_file_url: there is no file {boot_file} in {code.url}.", UserJobStatus.SUBMIT_FAILED
            )
        return boot_file

    def _submit_program(self, id: str, program: UserProgram) -> None:
        """Submit the program, with retries: in a new cluster, the job server starts last."""
        deadline = time.monotonic() + JOB_SERVER_S
        while True:
            try:
                self._ray.submit(id, program)
                return
            except RayJobsError as error:
                reason = str(error)
            try:
                if self._ray.find(id) is not None:  # Ray accepted it, and only the answer was lost
                    return
            except RayJobsError:
                logger.warning("Ray's job server doesn't answer", exc_info=True)
            if time.monotonic() > deadline:
                raise JobFailedError(reason, UserJobStatus.SUBMIT_FAILED)
            self._supervision.status(UserJobStatus.SUBMITTING, reason)
            self._supervision.wait(RETRY_S)

    def _arguments(self) -> list[str]:
        """Return the program's arguments: data, results, number of GPUs, then the user's own parameters."""
        data = data_locations(self._settings, self._storage, self._store.datasets, self._supervision.job.project)
        arguments = [("data_url", location.url) for location in data]
        if self._settings.train_url:
            train = self._storage.resolve(self._settings.train_url)
            train.fs.makedirs(train.path, exist_ok=True)
            arguments.append(("train_url", train.url))
        arguments.append(("num_gpus", str(self._spec.num_gpus)))
        arguments += [(p.label, p.value) for p in self._settings.parameter or () if p.label not in SET_BY_SERVICE]
        return [f"--{label}={value}" for label, value in arguments]

    def _follow(self, id: str) -> None:
        """Return when the program has succeeded. Raises JobFailedError."""
        stored = self._store.logs.sizes_since_submission(self._supervision.job)
        output = ProgramOutput(self._ray, id, self._num_workers, self._supervision, stored)
        shown: RayJobState | None = None
        while True:
            job = self._find(id)
            if job is None:
                raise JobFailedError("Ray no longer knows this job. Start it again.", UserJobStatus.LOST)
            if job.state is not shown:
                shown = job.state
                if job.state is RayJobState.WAITING:
                    self._supervision.status(UserJobStatus.WAITING, job.message)
                else:  # a short program may have ended already
                    self._supervision.status(UserJobStatus.RUNNING)
            if job.state is not RayJobState.WAITING:
                output.start()
            if job.state.has_ended:
                break
            self._supervision.wait(POLL_S)
        output.finish()
        if job.state is RayJobState.STOPPED:
            raise JobFailedError(
                "The program was stopped on the Ray cluster, not by this service.", UserJobStatus.KILLED
            )
        if job.state is RayJobState.FAILED:
            raise JobFailedError(f"The program failed: {' '.join(job.message.split())} See its log.")

    def _find(self, id: str) -> RayJob | None:
        """Return Ray's state of the job, with retries: after a restart, the job server starts last.

        Raises JobFailedError if the job server is unreachable for too long.
        """
        deadline = time.monotonic() + JOB_SERVER_S
        while True:
            try:
                return self._ray.find(id)
            except RayJobsError as error:
                if time.monotonic() > deadline:
                    raise JobFailedError(str(error), UserJobStatus.LOST) from error
            self._supervision.wait(POLL_S)

    def _stop(self, id: str) -> None:
        """Stop the program and wait until it has ended."""
        deadline = time.monotonic() + STOP_S
        try:
            self._ray.stop(id)
            while time.monotonic() < deadline:
                job = self._ray.find(id)
                if job is None or job.state.has_ended:
                    return
                time.sleep(POLL_S)
        except RayJobsError:
            logger.warning("Ray job %s can't be stopped", id, exc_info=True)

    def _copy_logs(self) -> None:
        if self._settings.log_url:
            self._supervision.copy_logs(self._storage.resolve(self._settings.log_url), self._log_files)
