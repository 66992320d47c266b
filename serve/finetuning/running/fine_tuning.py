"""One claimed job from its files to its model."""

from __future__ import annotations

from tandem.cluster.errors import ArtifactError
from tandem.serve.errors import NotFoundError, ServeError
from tandem.serve.finetuning.data.lines import LineError
from tandem.serve.finetuning.data.row_file import RowFile
from tandem.serve.finetuning.data.settings import resolved
from tandem.serve.finetuning.models import PROJECT, new_name
from tandem.serve.finetuning.running.context import JobContext, RunnerServices
from tandem.serve.finetuning.running.epochs import EpochTuning, num_steps
from tandem.serve.finetuning.running.reinforcement import ReinforcementTuning
from tandem.serve.finetuning.running.supervision import JobFailedError, Supervision
from tandem.serve.finetuning.store.claims import ClaimedFineTuning
from tandem.serve.finetuning.store.store import FineTuningStore
from tandem.serve.store.policies.lineage import ForkSource
from tandem.serve.store.tables.training import ModelRow


class FineTuning:
    """Checks the files, makes the model, trains it by the job's method, and ends the job."""

    def __init__(
        self,
        job: ClaimedFineTuning,
        supervision: Supervision,
        services: RunnerServices,
        finetuning: FineTuningStore,
    ):
        self._job, self._supervision = job, supervision
        self._services, self._finetuning = services, finetuning

    def run(self) -> None:
        """Do all that is left of the job. Raises JobFailedError, and what `Supervision.wait` raises."""
        job = self._job
        rows = self._rows("training_file", job.training_file)
        validation = self._rows("validation_file", job.validation_file) if job.validation_file else None
        method = resolved(job.method, len(rows))
        model = self._model()
        self._finetuning.claims.validated(job, method, model.id)
        total_steps = None if method["type"] == "reinforcement" else num_steps(method, len(rows))
        context = JobContext(job, method, model, self._supervision, self._services, self._finetuning, total_steps)
        self._train(context, rows, validation)
        checkpoint = self._finetuning.claims.last_checkpoint(job)
        if checkpoint is None:
            raise JobFailedError("The job made no version.")
        self._finetuning.claims.succeed(job, checkpoint.model, self._finetuning.claims.num_trained_tokens(job))

    def _train(self, context: JobContext, rows: RowFile, validation: RowFile | None) -> None:
        match context.method["type"]:
            case "reinforcement":
                ReinforcementTuning(context, rows, validation).run()
            case _:
                EpochTuning(context, rows).run()

    def _rows(self, field: str, file_id: str) -> RowFile:
        """Return the rows of a file. Raises JobFailedError."""
        key = self._finetuning.files.used(file_id).blob_key
        try:
            return RowFile(self._services.artifacts.open_blob(key), self._job.method["type"])
        except LineError as error:
            raise JobFailedError(f"{field}: {error}", f"invalid_{field}", field) from None
        except ArtifactError as error:
            raise JobFailedError(f"{field}: {error}", f"invalid_{field}", field) from error

    def _model(self) -> ModelRow:
        """Return the job's model, made if it doesn't exist."""
        job, store = self._job, self._services.store
        if job.base_model not in self._services.base_models:
            raise JobFailedError(f"This service no longer has base model {job.base_model}.", "model_not_found", "model")
        if job.model_id is not None:
            try:
                return store.models.get(job.model_id, job.entity)
            except ServeError:
                raise JobFailedError("The job's model was deleted.", "model_deleted", "model") from None
        name = new_name(job.base_model, job.suffix, job.id)
        if job.start_model_id is None:
            return store.models.add(job.entity, PROJECT, name, job.base_model, return_existing=True)
        try:
            # A new optimizer: the method may be another one than that which trained the version.
            source = ForkSource(job.start_model_id, job.start_step, optimizer=False)
            return store.lineage.fork(job.entity, PROJECT, name, job.base_model, source, return_existing=True)
        except NotFoundError as error:
            raise JobFailedError(str(error), "model_not_found", "model") from error
