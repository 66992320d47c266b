"""A job that runs the user's boot file: fetched, submitted to Ray, followed to its end."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tandem.cluster.errors import JobCancelledError
from tandem.serve.modelarts.api.rules import boot_path
from tandem.serve.modelarts.api.schemas import RunSettings
from tandem.serve.modelarts.running.data import data_locations
from tandem.serve.modelarts.running.project_storage import Location, ProjectStorage
from tandem.serve.modelarts.running.ray_jobs import RayJob, RayJobs, RayJobsError, RayJobState, UserProgram
from tandem.serve.modelarts.running.resource_specs import ResourceSpec
from tandem.serve.modelarts.running.supervision import JobFailedError, Supervision
from tandem.serve.modelarts.running.workers import demultiplex
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.modelarts.store.store import ModelArtsStore

logger = logging.getLogger(__name__)
POLL_S = 0.5
RETRY_S = 2.0
JOB_SERVER_S = 120.0
"""How long Ray's job server may be out of reach before the job counts as lost."""
STOP_S = 60.0
MAX_SUBMISSIONS = 3
SET_BY_SERVICE = ("data_url", "train_url", "num_gpus", "init_method", "rank", "world_size")


def log_file(rank: int) -> str:
    return f"worker-{rank}.log"


class BootJob:
    """One claimed version with a boot file. `run` returns when it has succeeded and raises otherwise."""

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

    def run(self) -> None:
        """Raises JobFailedError, and what `Supervision.wait` raises: JobCancelledError once the program has ended."""
        number = self._supervision.job.num_submissions
        id = self._id(number)
        if not number or self._find(id) is None:
            if number:
                self._say(f"the Ray cluster that ran this job has gone; it is started again (submission {number + 1})")
            if number >= MAX_SUBMISSIONS:
                raise JobFailedError(
                    f"Its Ray cluster has gone {number} times while it ran. Look at the cluster's nodes, "
                    "then start the job again.",
                    UserJobStatus.LOST,
                )
            id = self._submit()
        try:
            self._follow(id)
        except JobCancelledError:
            self._end(id)
            self._copy_logs()
            raise
        except JobFailedError:
            self._copy_logs()
            raise
        self._copy_logs()

    def _id(self, number: int) -> str:
        return f"{self._supervision.job.submission_prefix}-{number}"

    def _submit(self) -> str:
        self._supervision.wait(0)  # a job that is to end isn't handed over any more
        self._supervision.status(UserJobStatus.SUBMITTING)
        arguments = [f"--{label}={value}" for label, value in self._arguments()]
        with tempfile.TemporaryDirectory(prefix="tandem-code-") as directory:
            code = self._storage.resolve(self._settings.app_url or "")
            boot = boot_path(self._settings) or ""
            _fetch_code(code, Path(directory), boot)
            # Counted before it is submitted: a runner that dies in between finds no such job and takes the next id.
            self._supervision.flush()
            id = self._id(self._store.claims.count_submission(self._supervision.job))
            self._hand_over(id, UserProgram(Path(directory), boot, arguments, self._spec, self._num_workers))
        return id

    def _hand_over(self, id: str, program: UserProgram) -> None:
        """Submits the program, trying again while the job server isn't there: on a new cluster it comes up last."""
        deadline = time.monotonic() + JOB_SERVER_S
        while True:
            try:
                self._ray.submit(id, program)
                return
            except RayJobsError as error:
                reason = str(error)
            try:
                if self._ray.find(id) is not None:  # it was taken, and only the answer was lost
                    return
            except RayJobsError:
                logger.warning("Ray's job server doesn't answer", exc_info=True)
            if time.monotonic() > deadline:
                raise JobFailedError(reason, UserJobStatus.SUBMIT_FAILED)
            self._supervision.status(UserJobStatus.SUBMITTING, reason)
            self._supervision.wait(RETRY_S)

    def _arguments(self) -> list[tuple[str, str]]:
        """The program's arguments: where data lies and results go, its GPUs, then the user's own parameters."""
        data = data_locations(self._settings, self._storage, self._store.datasets, self._supervision.job.project)
        arguments = [("data_url", location.url) for location in data]
        if self._settings.train_url:
            train = self._storage.resolve(self._settings.train_url)
            train.fs.makedirs(train.path, exist_ok=True)
            arguments.append(("train_url", train.url))
        arguments.append(("num_gpus", str(self._spec.num_gpus)))
        own = [(p.label, p.value) for p in self._settings.parameter or () if p.label not in SET_BY_SERVICE]
        return arguments + own

    def _follow(self, id: str) -> None:
        """Until the program has ended. Raises JobFailedError."""
        output = _Output(self._ray, id, self._num_workers, self._supervision, self._stored_lines())
        shown: RayJobState | None = None
        while True:
            job = self._find(id)
            if job is None:
                raise JobFailedError("Ray doesn't know this job any more. Start it again.", UserJobStatus.LOST)
            if job.state is not shown:
                shown = job.state
                is_running = job.state is not RayJobState.WAITING  # a short program may have ended already
                self._supervision.status(
                    UserJobStatus.RUNNING if is_running else UserJobStatus.WAITING, None if is_running else job.message
                )
            if job.state is RayJobState.RUNNING or job.state.has_ended:
                output.start()
            if job.state.has_ended:
                break
            self._supervision.wait(POLL_S)
        output.finish()
        if job.state is RayJobState.STOPPED:
            raise JobFailedError("It was stopped on the Ray cluster, not through this service.", UserJobStatus.KILLED)
        if job.state is RayJobState.FAILED:
            raise JobFailedError(f"The program failed: {' '.join(job.message.split())} Its log says more.")

    def _find(self, id: str) -> RayJob | None:
        """What Ray knows of the job, once its job server answers: after a restart it comes up last.

        Raises JobFailedError when it is out of reach for too long.
        """
        deadline = time.monotonic() + JOB_SERVER_S
        while True:
            try:
                return self._ray.find(id)
            except RayJobsError as error:
                if time.monotonic() > deadline:
                    raise JobFailedError(str(error), UserJobStatus.LOST) from error
            self._supervision.wait(POLL_S)

    def _end(self, id: str) -> None:
        """Ends the program and waits until it has."""
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

    def _stored_lines(self) -> Mapping[str, int]:
        """How many lines of this submission an earlier runner has stored: Ray gives the output from its beginning."""
        return self._store.logs.sizes_since_submission(self._supervision.job)

    def _say(self, line: str) -> None:
        for rank in range(self._num_workers):
            self._supervision.log(log_file(rank), [f"tandem: {line}"])

    def _copy_logs(self) -> None:
        if self._settings.log_url:
            target = self._storage.resolve(self._settings.log_url)
            self._supervision.copy_logs(target, [log_file(rank) for rank in range(self._num_workers)])


class _Output:
    """Brings a program's output into the job's log while it runs."""

    def __init__(
        self, ray_jobs: RayJobs, id: str, num_workers: int, supervision: Supervision, stored: Mapping[str, int]
    ):
        self._ray, self._id, self._num_workers, self._supervision = ray_jobs, id, num_workers, supervision
        self._skip = dict(stored)
        self._rest = ""
        self._num_lines = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_finished = False

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name=f"output-{self._id}", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Takes what is left once the program has ended."""
        if self._thread is not None:
            self._thread.join(10)
        with self._lock:  # a thread that lags behind takes nothing more
            self._is_finished = True
        try:
            text = self._ray.output(self._id)
        except RayJobsError:
            logger.warning("The end of the output of Ray job %s can't be read", self._id, exc_info=True)
            text = ""
        self._take_lines(text.removesuffix("\n").split("\n")[self._num_lines :] if text else [])
        self._supervision.flush()

    def _follow(self) -> None:
        try:
            self._ray.follow(self._id, self._take)
        except RayJobsError:
            logger.warning("The output of Ray job %s will be read at its end", self._id, exc_info=True)

    def _take(self, text: str) -> None:
        with self._lock:
            if self._is_finished:
                return
            complete, newline, self._rest = (self._rest + text).rpartition("\n")
            if newline:
                self._take_lines(complete.split("\n"))

    def _take_lines(self, lines: list[str]) -> None:
        self._num_lines += len(lines)
        for rank, of_worker in demultiplex(lines, self._num_workers).items():
            file = log_file(rank)
            skipped = min(self._skip.get(file, 0), len(of_worker))
            self._skip[file] = self._skip.get(file, 0) - skipped
            self._supervision.log(file, of_worker[skipped:])


def _fetch_code(code: Location, directory: Path, boot: str) -> None:
    if not code.is_directory():
        raise JobFailedError(f"app_url: there is no directory {code.url}.", UserJobStatus.SUBMIT_FAILED)
    code.fetch(directory)
    if not (directory / boot).is_file():
        raise JobFailedError(f"boot_file_url: there is no file {boot} in {code.url}.", UserJobStatus.SUBMIT_FAILED)
