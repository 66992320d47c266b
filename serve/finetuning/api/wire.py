"""The wire types of OpenAI's fine-tuning API. Fields that this service doesn't support are rejected by name."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from tandem.rl.graders.spec import Grader
from tandem.serve.api.wire.paging import Listed
from tandem.serve.api.wire.requests import RequestBody
from tandem.serve.finetuning.store.tables import (
    CheckpointRow,
    FineTuningEventRow,
    FineTuningJobRow,
    UploadedFileRow,
)

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1, le=100_000)]
Positive = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Id = Annotated[str, Field(min_length=1, max_length=64)]


class SupervisedHyperparameters(RequestBody):
    batch_size: Auto | Count = "auto"
    learning_rate_multiplier: Auto | Positive = "auto"
    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"


class DpoHyperparameters(SupervisedHyperparameters):
    beta: Auto | Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = "auto"


class ReinforcementHyperparameters(SupervisedHyperparameters):
    compute_multiplier: Auto | Annotated[float, Field(gt=0, le=32, allow_inf_nan=False)] = "auto"
    eval_interval: Auto | Count = "auto"
    eval_samples: Auto | Annotated[int, Field(ge=1, le=64)] = "auto"
    reasoning_effort: Literal["default"] = "default"
    """Other values are rejected: base models of this service have no such setting."""


class SupervisedMethod(RequestBody):
    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class DpoMethod(RequestBody):
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class ReinforcementMethod(RequestBody):
    grader: Grader
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()
    response_format: dict[str, Any] | None = None
    """As in a chat completion; the engine holds the answers to it."""


class Method(RequestBody):
    """One method, with its settings under its own name."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None
    reinforcement: ReinforcementMethod | None = None

    @model_validator(mode="after")
    def _has_settings_of_its_type_only(self) -> Self:
        others = [name for name in ("supervised", "dpo", "reinforcement") if name != self.type]
        others = [name for name in others if getattr(self, name) is not None]
        if others:
            raise ValueError(f"type is {self.type!r}, so {others[0]} must be left out")
        if self.type == "reinforcement" and self.reinforcement is None:
            raise ValueError("type is 'reinforcement', so reinforcement with its grader is needed")
        return self


class CreateFineTuningJob(RequestBody):
    """A fine-tuning job: a file of training data, a model, and a method."""

    model: Annotated[str, Field(min_length=1, max_length=500)]
    training_file: Id
    validation_file: Id | None = None
    method: Method | None = None
    hyperparameters: SupervisedHyperparameters | None = None
    """Those of the supervised method; deprecated by OpenAI in favour of `method`."""
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Seed | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None
    """None: this service sends metrics nowhere. Read a job's events, or its checkpoints' metrics."""


class GraderToRun(RequestBody):
    grader: Grader
    model_sample: Annotated[str, Field(max_length=1_000_000)]
    item: Any = None


class GraderToValidate(RequestBody):
    grader: Grader


class File(Listed):
    """An uploaded file."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None

    @classmethod
    def of(cls, row: UploadedFileRow) -> Self:
        return cls(
            id=row.id,
            bytes=row.num_bytes,
            created_at=_seconds(row.created_at),
            expires_at=row.expires_at and _seconds(row.expires_at),
            filename=row.filename,
            purpose=row.purpose,
        )


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class JobError(BaseModel):
    code: str
    message: str
    param: str | None


class FineTuningJob(Listed):
    """A fine-tuning job."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    estimated_finish: None = None
    hyperparameters: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: str
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    integrations: list[Any]
    metadata: dict[str, Any] | None
    method: dict[str, Any]

    @classmethod
    def of(cls, row: FineTuningJobRow) -> Self:
        settings = row.method.get(row.method["type"]) or {}
        return cls(
            id=row.id,
            created_at=_seconds(row.created_at),
            error=row.error and JobError.model_validate(row.error),
            fine_tuned_model=row.fine_tuned_model,
            finished_at=row.finished_at and _seconds(row.finished_at),
            hyperparameters=_supervised(settings.get("hyperparameters", {})),
            model=row.model,
            organization_id=row.entity,
            result_files=[],
            integrations=[],
            seed=row.seed,
            status=row.status,
            trained_tokens=row.trained_tokens,
            training_file=row.training_file,
            validation_file=row.validation_file,
            metadata=row.labels,
            method=row.method,
        )


def _supervised(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Return the part that a job's deprecated `hyperparameters` has."""
    return {name: hyperparameters.get(name, "auto") for name in SupervisedHyperparameters.model_fields}


class FineTuningEvent(Listed):
    """An event of a fine-tuning job."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None

    @classmethod
    def of(cls, row: FineTuningEventRow) -> Self:
        return cls(
            id=f"{EVENT}-{row.job_id.removeprefix(JOB)}-{row.seq}",
            created_at=_seconds(row.created_at),
            level=row.level,
            message=row.message,
            type=row.type,
            data=row.data,
        )


class FineTuningCheckpoint(Listed):
    """A version that a fine-tuning job made."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int

    @classmethod
    def of(cls, row: CheckpointRow) -> Self:
        return cls(
            id=f"{CHECKPOINT}-{row.job_id.removeprefix(JOB)}-{row.number}",
            created_at=_seconds(row.created_at),
            fine_tuned_model_checkpoint=row.model,
            fine_tuning_job_id=row.job_id,
            metrics={"step": row.gradient_steps, **row.metrics},
            step_number=row.gradient_steps,
        )


JOB, EVENT, CHECKPOINT = "ftjob-", "ftevent", "ftckpt"


def _seconds(time: datetime) -> int:
    return int(time.timestamp())


class GraderErrors(BaseModel):
    """Flags of a grader's run."""

    formula_parse_error: bool = False
    invalid_variable_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_server_error: bool = False
    model_grader_server_error_details: str | None = None
    other_error: bool = False
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False


class GraderMetadata(BaseModel):
    errors: GraderErrors
    execution_time: float
    """Seconds."""
    name: str
    sampled_model_name: str | None
    scores: dict[str, float]
    token_usage: int | None
    type: str


class GraderRun(BaseModel):
    metadata: GraderMetadata
    model_grader_token_usage_per_model: dict[str, int]
    reward: float
    sub_rewards: dict[str, float]


class GraderValidated(BaseModel):
    grader: dict[str, Any]


REQUEST_BODIES: tuple[type[RequestBody], ...] = (CreateFineTuningJob, GraderToRun, GraderToValidate)
