"""A job of a built-in algorithm: recorded trajectory groups become training jobs, one batch after the other."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zstandard
from pydantic import ValidationError

from tandem.cluster.artifacts import PAYLOADS, Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.errors import JobCancelledError
from tandem.rl.errors import ConfigError
from tandem.rl.trajectories import TrajectoryGroup
from tandem.serve.api.bodies.problems import problems_of
from tandem.serve.errors import NoAnswerError, QueueFullError, ServeError, UnavailableError
from tandem.serve.jobs.blobs import delete_blobs
from tandem.serve.jobs.references import kl_reference
from tandem.serve.modelarts.api.schemas import RunSettings
from tandem.serve.modelarts.running.algorithms import ALGORITHMS, parse_parameters
from tandem.serve.modelarts.running.boot_job import log_file
from tandem.serve.modelarts.running.data import data_locations
from tandem.serve.modelarts.running.project_storage import Location, ProjectStorage
from tandem.serve.modelarts.running.supervision import JobFailedError, RunnerStoppedError, Supervision
from tandem.serve.modelarts.store.datasets import DatasetVersions
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.store.store import Store
from tandem.serve.store.tables import JobRow, ModelRow

POLL_S = 0.3
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Batch:
    """The groups of one training job, as the lines they were read from, and where they stood."""

    index: int
    epoch: int
    lines: Sequence[bytes]
    places: Sequence[str]


class AlgorithmRun:
    """One claimed version with a built-in algorithm. `run` returns when it has succeeded and raises otherwise.

    Each batch is a training job with an idempotency key of its own, so a run that is begun again finds the jobs that it
    has posted and goes on where it was.
    """

    def __init__(
        self,
        supervision: Supervision,
        datasets: DatasetVersions,
        store: Store,
        storage: ProjectStorage,
        artifacts: Artifacts,
        config: TandemConfig,
    ):
        self._supervision, self._datasets, self._store = supervision, datasets, store
        self._storage, self._artifacts = storage, artifacts
        self._settings = RunSettings.model_validate(supervision.job.settings)
        self._run = parse_parameters(ALGORITHMS[self._settings.model_id or 0], self._settings.parameter or ())
        self._base_models = [base.name for base in config.base_models]
        self._base_model = self._run.options.base_model or config.base_models[0].name
        self._artifacts_root, self._limits = config.artifacts_root, config.limits
        self._metrics: list[dict[str, object]] = []

    def run(self) -> None:
        """Raises JobFailedError, and what `Supervision.wait` raises."""
        self._supervision.status(UserJobStatus.RUNNING)
        try:
            data = data_locations(self._settings, self._storage, self._datasets, self._supervision.job.project)
            options = self._run.options
            if self._base_model not in self._base_models:
                raise JobFailedError(f"base_model: this service has no base model {self._base_model!r} any more.")
            model = self._store.add_model(
                self._supervision.job.project, options.project, options.model_name, self._base_model, True
            )
            self._say(f"training {model.path} on {self._base_model}")
            job: JobRow | None = None
            for batch in self._batches(data):
                job = self._train(model, batch)
            if job is None:
                raise JobFailedError("data_url: there are no trajectory groups in the data.")
            self._leave_results(model, job)
        except (UnavailableError, RunnerStoppedError):
            raise  # another attempt finds what this one has done
        except (ServeError, ConfigError) as error:
            raise JobFailedError(str(error)) from error
        finally:
            if self._settings.log_url:
                self._supervision.copy_logs(self._storage.resolve(self._settings.log_url), [log_file(0)])

    def _batches(self, data: Sequence[Location]) -> Iterator[Batch]:
        """The batches of all epochs; the last one of an epoch may be smaller."""
        size, index = self._run.options.batch_size, 0
        for epoch in range(1, self._run.options.num_epochs + 1):
            lines: list[bytes] = []
            places: list[str] = []
            for place, line in _lines(data):
                lines.append(line)
                places.append(place)
                if len(lines) == size:
                    yield Batch(index, epoch, lines, places)
                    index, lines, places = index + 1, [], []
            if lines:
                yield Batch(index, epoch, lines, places)
                index += 1

    def _train(self, model: ModelRow, batch: Batch) -> JobRow:
        """Posts a batch, unless that was done before, and waits until it is trained."""
        for place, line in zip(batch.places, batch.lines, strict=True):
            _check_group(place, line)
        posted = self._post(model, batch)
        while (job := self._store.job(posted.id, model.entity)).state in ("queued", "running"):
            try:
                self._supervision.wait(POLL_S)
            except JobCancelledError:
                self._store.request_cancel(posted.id, model.entity)
                raise
        if job.state != "succeeded":
            raise JobFailedError(
                f"Batch {batch.index} ({batch.places[0]} to {batch.places[-1]}), training job {job.id}: {job.error}"
            )
        version = self._store.versions(model.id, model.entity, 1, (job.step or 1) - 1)[0]
        self._metrics.append(
            {"batch": batch.index, "epoch": batch.epoch, "training_job_id": job.id, "step": job.step, **version.metrics}
        )
        shown = ", ".join(
            f"{name} {version.metrics[name]:.4g}" for name in ("reward", "loss/train") if name in version.metrics
        )
        self._say(f"batch {batch.index} of epoch {batch.epoch}: version {job.step}{', ' + shown if shown else ''}")
        return job

    def _post(self, model: ModelRow, batch: Batch) -> JobRow:
        config = self._run.config
        body = b'{"model_id":"%s","trajectory_groups":[%s],"experimental_config":%s}' % (
            model.id.encode(),
            b",".join(batch.lines),
            config.model_dump_json(exclude_none=True).encode(),
        )
        digest = hashlib.sha256(body).hexdigest()
        key = f"training-job-version-{self._supervision.job.version_id}-batch-{batch.index}"
        if repeated := self._store.find_repeat(model.id, key, digest):
            return repeated
        self._supervision.wait(0)  # a run that is to end posts nothing new
        job_id = str(uuid.uuid4())
        blob = f"{PAYLOADS}/{job_id}.json.zst"
        reference = kl_reference(config, self._artifacts_root)
        options = config.model_dump(mode="json", exclude_none=True)
        try:
            while True:
                try:
                    # Each time: a blob that no job refers to is swept away after a while.
                    self._artifacts.write_blob(blob, zstandard.ZstdCompressor().compress(body))
                    job = self._store.add_job(job_id, model.id, blob, options, digest, key, reference, self._limits)
                    break
                except QueueFullError as full:
                    self._supervision.status(UserJobStatus.RUNNING, str(full))
                    self._supervision.wait(1)
        except NoAnswerError:
            raise  # the job may have been accepted
        except BaseException:
            delete_blobs(self._artifacts, [blob])
            raise
        if job.id != job_id:
            delete_blobs(self._artifacts, [blob])
        return job

    def _leave_results(self, model: ModelRow, job: JobRow) -> None:
        """The final adapter and a metrics file under train_url."""
        if not self._settings.train_url:
            return
        target = self._storage.resolve(self._settings.train_url)
        version = self._store.versions(model.id, model.entity, 1, (job.step or 1) - 1)[0]
        checkpoint = self._artifacts.pull_checkpoint(version.digest)
        for name in ADAPTER_FILES:
            target.write(f"adapter/{name}", (checkpoint / name).read_bytes())
        lines = "".join(json.dumps(line) + "\n" for line in self._metrics)
        target.write("metrics.jsonl", lines.encode())
        self._say(f"version {job.step} and metrics.jsonl are at {target.url}")

    def _say(self, line: str) -> None:
        self._supervision.log(log_file(0), [line])


def _lines(data: Sequence[Location]) -> Iterator[tuple[str, bytes]]:
    """Each line of the data that isn't empty, with where it stands: JSON Lines files, in the order of their names."""
    for location in data:
        for file in location.files():
            if location.is_directory() and not file.endswith(".jsonl"):
                continue
            for number, line in enumerate(location.lines(file), 1):
                if stripped := line.strip():
                    yield f"{file.rpartition('/')[2]} line {number}", stripped


def _check_group(place: str, line: bytes) -> None:
    try:
        TrajectoryGroup.model_validate_json(line)
    except ValidationError as error:
        first = problems_of(error.errors(include_url=False, include_input=False, include_context=False))[0]
        raise JobFailedError(f"{place}: {f'{first.path}: ' if first.path else ''}{first.msg}") from None
