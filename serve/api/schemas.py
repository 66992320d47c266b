"""What the API takes and gives. The training-job types publish the schema that clients were written against."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tandem.rl.config import TrainingConfig
from tandem.rl.trajectories import TrajectoryGroup
from tandem.serve.api.paging import Listed, numbered_cursor
from tandem.serve.store.tables import ApiKeyRow, EventRow, JobRow, LogRow, ModelRow, VersionRow

Role = Literal["infer", "train", "admin"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
NAME = re.compile(r"\w[\w.-]{0,127}")
MAX_STEP = 2**31 - 1


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(
            "must be 1 to 128 letters, digits, '.', '_' or '-', and begin with a letter, a digit or '_': "
            "models are asked for as entity/project/name"
        )
    return value


Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": f"^{NAME.pattern}$"})]


def _open_in_schema(schema: dict[str, Any]) -> None:
    """Unknown keys are refused, so that a misspelt one is noticed, but the published schema doesn't say so."""
    schema.pop("additionalProperties", None)


def _no_null_default(schema: dict[str, Any]) -> None:
    _open_in_schema(schema)
    del schema["properties"]["experimental_config"]["default"]


class RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra=_open_in_schema)


class CreateModel(RequestBody):
    """Registers a model: a LoRA policy on a base model, under a name."""

    entity: Name | None = None
    """Unset: the entity of the key."""
    project: Name
    name: Name
    base_model: str
    return_existing: bool = False
    """Return the model of this name if there is one, instead of refusing."""


class DeleteCheckpoints(RequestBody):
    steps: Annotated[list[Annotated[int, Field(ge=0, le=MAX_STEP)]], Field(max_length=10_000)]


class CreateTrainingJob(RequestBody):
    model_config = ConfigDict(json_schema_extra=_no_null_default)

    model_id: UUID
    trajectory_groups: list[TrajectoryGroup]
    experimental_config: TrainingConfig | None = None


class LogTrajectories(RequestBody):
    model_id: UUID
    split: Name
    trajectory_groups: list[TrajectoryGroup]


class CreateKey(RequestBody):
    """An API key for the entity of the key that asks."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
    """Who or what uses it."""
    role: Role


REQUEST_BODIES: tuple[type[RequestBody], ...] = (
    CreateModel,
    DeleteCheckpoints,
    CreateTrainingJob,
    LogTrajectories,
    CreateKey,
)


class ValidationError(BaseModel):
    """One fault of a request: where it is, a sentence, and the kind of fault."""

    loc: list[str | int] = Field(title="Location")
    msg: str = Field(title="Message")
    type: str = Field(title="Error Type")


def _details_may_be_missing(schema: dict[str, Any]) -> None:
    schema.pop("required", None)


class HTTPValidationError(BaseModel):
    """A request that was understood but can't be accepted."""

    model_config = ConfigDict(json_schema_extra=_details_may_be_missing)

    detail: list[ValidationError]


class ErrorDescription(BaseModel):
    message: str
    """What was wrong and what to do."""
    type: str
    code: str | None
    """What went wrong, as a word that programs can test."""
    param: str | None
    """The part of the request that it is about."""


class ErrorBody(BaseModel):
    """Every error of the service."""

    error: ErrorDescription
    detail: list[ValidationError] | None = None
    """The faults of the request, where it has any."""


class Model(Listed):
    entity: str
    project: str
    name: str
    base_model: str
    run_id: str | None
    """Always null: clients ask for the id of a run in a tracking service, which there is none of."""
    step: int
    """The newest version; 0 before any training."""
    created_at: datetime

    @classmethod
    def of(cls, row: ModelRow, step: int) -> Self:
        return cls(
            id=row.id,
            entity=row.entity,
            project=row.project,
            name=row.name,
            base_model=row.base_model,
            run_id=None,
            step=step,
            created_at=row.created_at,
        )


class ModelDeleted(BaseModel):
    model_id: str
    deleted_checkpoints: int
    deleted_run: bool = False


class Checkpoint(Listed):
    step: int
    metrics: dict[str, float]
    digest: str
    """Sha256 of the checkpoint's manifest; completions carry it in x-policy-digest."""
    created_at: datetime

    @classmethod
    def of(cls, row: VersionRow) -> Self:
        return cls(
            id=numbered_cursor(row.model_id, row.step),
            step=row.step,
            metrics=row.metrics,
            digest=row.digest,
            created_at=row.created_at,
        )


class CheckpointsDeleted(BaseModel):
    deleted_count: int
    not_found_steps: list[int]


class TrainingJobResponse(BaseModel):
    id: UUID


class TrainingJob(Listed):
    model_id: str
    state: JobState
    attempt: int
    """How often the job was begun."""
    error: str | None
    """Why it failed, or why it is tried again."""
    waiting_for: str | None
    """What a running job needs before it can begin, like learners that find no room on the cluster."""
    step: int | None
    """The version that it made."""
    cancel_requested: bool
    num_events: int
    num_gradient_steps: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, row: JobRow) -> Self:
        return cls.model_validate(row, from_attributes=True)


class TrainingJobEvent(Listed):
    type: Literal["training_started", "logprobs_rescored", "gradient_step", "training_ended", "training_failed"]
    data: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, row: EventRow) -> Self:
        return cls(id=numbered_cursor(row.job_id, row.seq), type=row.type, data=row.data, created_at=row.created_at)


class JobArtifact(Listed):
    """A file that a job has left; its id is its name."""

    size_bytes: int


class Version(Listed):
    step: int
    digest: str
    """Sha256 of the checkpoint's manifest; completions carry it in x-policy-digest."""
    created_at: datetime

    @classmethod
    def of(cls, row: VersionRow) -> Self:
        return cls(
            id=numbered_cursor(row.model_id, row.step), step=row.step, digest=row.digest, created_at=row.created_at
        )


class LogEntry(Listed):
    split: str
    metrics: dict[str, float]
    created_at: datetime

    @classmethod
    def of(cls, row: LogRow) -> Self:
        return cls.model_validate(row, from_attributes=True)


class ApiKey(Listed):
    """A key, without the secret: only its hash is kept."""

    name: str
    entity: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None

    @classmethod
    def of(cls, row: ApiKeyRow) -> Self:
        return cls.model_validate(row, from_attributes=True)


class CreatedApiKey(ApiKey):
    key: str
    """The secret to send as a bearer token. It is never shown again."""


class KeyRevoked(BaseModel):
    id: str
    revoked: bool = True


class InferenceModel(Listed):
    """A name that completions can be asked for, as OpenAI lists them."""

    object: Literal["model"] = "model"
    created: int
    owned_by: str


class InferenceModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[InferenceModel]


class Health(BaseModel):
    status: Literal["ok", "degraded"]
    reasons: list[str]
