"""A job of a built-in algorithm: each batch of recorded trajectory groups becomes one training job."""

from __future__ import annotations

import hashlib
import json

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.errors import JobCancelledError
from tandem.cluster.payloads.compressed import compressor
from tandem.rl.errors import ConfigError
from tandem.serve.errors import QueueFullError, ServeError, UnavailableError
from tandem.serve.jobs.accept import JobAcceptance, OfferedJob
from tandem.serve.jobs.supervision import RunnerStoppedError
from tandem.serve.modelarts.running.batches import Batch, read_batches
from tandem.serve.modelarts.running.job_data import data_locations
from tandem.serve.modelarts.running.supervision import JobFailedError, Supervision, log_file
from tandem.serve.modelarts.settings.algorithm_parameters import parse_parameters
from tandem.serve.modelarts.settings.algorithms import ALGORITHMS
from tandem.serve.modelarts.settings.project_storage import ProjectStorage
from tandem.serve.modelarts.settings.run_settings import RunSettings
from tandem.serve.modelarts.store.datasets import DatasetVersions
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.store.store import Store
from tandem.serve.store.tables.training import JobRow, ModelRow

POLL_S = 0.3
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class AlgorithmJob:
    """One claimed version with a built-in algorithm.

    Each training job has an idempotency key of its own, so a job that another runner resumes finds the training jobs
    that were already accepted.
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
        parameters = parse_parameters(ALGORITHMS[self._settings.model_id or 0], self._settings.parameter or ())
        self._options, self._training = parameters.options, parameters.training
        self._base_models = [base.name for base in config.base_models]
        self._base_model = self._options.base_model or config.base_models[0].name
        self._acceptance = JobAcceptance(store, artifacts, config)
        self._metrics: list[dict[str, object]] = []

    def run(self) -> None:
        """Train on all batches. Raises JobFailedError, and what `Supervision.wait` raises."""
        self._supervision.status(UserJobStatus.RUNNING)
        try:
            data = data_locations(self._settings, self._storage, self._datasets, self._supervision.job.project)
            model = self._model()
            self._log(f"training {model.path} on {self._base_model}")
            job: JobRow | None = None
            for batch in read_batches(data, self._options.batch_size, self._options.num_epochs):
                job = self._train(model, batch)
            if job is None:
                raise JobFailedError("data_url: the data contains no trajectory groups.")
            self._write_results(model, job)
        except (UnavailableError, RunnerStoppedError):
            raise  # the next runner resumes the job
        except (ServeError, ConfigError) as error:
            raise JobFailedError(str(error)) from error
        finally:
            if self._settings.log_url:
                self._supervision.copy_logs(self._storage.resolve(self._settings.log_url), [log_file(0)])

    def _model(self) -> ModelRow:
        """Return the model to train, added if it doesn't exist. Raises JobFailedError."""
        if self._base_model not in self._base_models:
            raise JobFailedError(f"base_model: this service no longer has base model {self._base_model!r}.")
        project = self._supervision.job.project
        return self._store.models.add(project, self._options.project, self._options.model_name, self._base_model, True)

    def _train(self, model: ModelRow, batch: Batch) -> JobRow:
        """Train on one batch. Returns its training job, which has succeeded."""
        batch.check()
        accepted = self._accept(model, batch)
        while (job := self._store.jobs.get(accepted.id, model.entity)).state in ("queued", "running"):
            try:
                self._supervision.wait(POLL_S)
            except JobCancelledError:
                self._store.jobs.request_cancel(accepted.id, model.entity)
                raise
        if job.state != "succeeded":
            raise JobFailedError(
                f"Batch {batch.index} ({batch.places[0]} to {batch.places[-1]}), training job {job.id}: {job.error}"
            )
        version = self._store.versions.page(model.id, model.entity, 1, (job.step or 1) - 1)[0]
        self._metrics.append(
            {"batch": batch.index, "epoch": batch.epoch, "training_job_id": job.id, "step": job.step, **version.metrics}
        )
        shown = ", ".join(
            f"{name} {version.metrics[name]:.4g}" for name in ("reward", "loss/train") if name in version.metrics
        )
        self._log(f"batch {batch.index} of epoch {batch.epoch}: version {job.step}{', ' + shown if shown else ''}")
        return job

    def _accept(self, model: ModelRow, batch: Batch) -> JobRow:
        """Return the training job of a batch, accepted if it doesn't exist. Waits for room in the queue."""
        body = b'{"model_id":"%s","trajectory_groups":[%s],"experimental_config":%s}' % (
            model.id.encode(),
            b",".join(batch.lines),
            self._training.model_dump_json(exclude_none=True).encode(),
        )
        offered = OfferedJob(
            model,
            self._training,
            hashlib.sha256(body).hexdigest(),
            lambda key: self._artifacts.write_blob(key, compressor().compress(body)),
            f"training-job-version-{self._supervision.job.version_id}-batch-{batch.index}",
        )
        while True:
            try:
                return self._acceptance.accept(offered, confirm=lambda: self._supervision.wait(0)).row
            except QueueFullError as full:
                self._supervision.status(UserJobStatus.RUNNING, str(full))
                self._supervision.wait(1)

    def _write_results(self, model: ModelRow, job: JobRow) -> None:
        """Write the final adapter and a metrics file below train_url."""
        if not self._settings.train_url:
            return
        target = self._storage.resolve(self._settings.train_url)
        version = self._store.versions.page(model.id, model.entity, 1, (job.step or 1) - 1)[0]
        checkpoint = self._artifacts.pull_checkpoint(version.digest)
        for name in ADAPTER_FILES:
            target.write(f"adapter/{name}", (checkpoint / name).read_bytes())
        lines = "".join(json.dumps(line) + "\n" for line in self._metrics)
        target.write("metrics.jsonl", lines.encode())
        self._log(f"wrote version {job.step} and metrics.jsonl to {target.url}")

    def _log(self, line: str) -> None:
        self._supervision.log(log_file(0), [line])
