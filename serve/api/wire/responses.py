"""Response bodies. Those of training jobs publish the schema that existing clients were generated from."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from tandem.serve.api.wire.paging import Listed
from tandem.serve.keys import Role

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Lora(BaseModel):
    """The LoRA settings of a model."""

    r: int
    alpha: float
    target_modules: list[str]
    seed: int


class Model(Listed):
    entity: str
    project: str
    name: str
    base_model: str
    run_id: str | None
    """Always null. Existing clients expect the id of a run in an experiment tracker; this service has none."""
    step: int
    """The newest version; 0 before the first training."""
    created_at: datetime
    lora: Lora | None = None
    """Its LoRA settings: its own or those of its base model. Null if that isn't configured any more."""
    origin: dict[str, Any] | None = None
    """Where it comes from if not from training alone: kind is "fork" (with model, step, optimizer) or "import" (with
    the step of the newest imported version) or "run" (with the run of a client of the Tinker API)."""


class ModelDeleted(BaseModel):
    model_id: str
    deleted_checkpoints: int
    deleted_run: bool = False


class Version(Listed):
    step: int
    digest: str
    """The SHA-256 of the checkpoint's manifest; completions return it in x-policy-digest."""
    created_at: datetime


class Checkpoint(Listed):
    origin: dict[str, Any] | None = None
    """Of a version that no job made: its kind, "import", "fork" or "run", and where it comes from."""
    step: int
    metrics: dict[str, float]
    digest: str
    """The SHA-256 of the checkpoint's manifest; completions return it in x-policy-digest."""
    created_at: datetime
    has_optimizer: bool = True
    """False if training that starts from this version begins with a new optimizer (retention.keep_optimizer)."""
    retired_at: datetime | None = None
    """When retention deleted the version (retention.keep_versions). Completions from it return 410."""
    kept_at: datetime | None = None
    """Since when it is kept: neither retention nor a request deletes it until it is released."""


class CheckpointsDeleted(BaseModel):
    deleted_count: int
    not_found_steps: list[int]


class DownloadUrl(BaseModel):
    url: str
    """Relative to the address of the service. It needs no key."""
    expires_at: datetime


class Dataset(Listed):
    """Rows of supervised data."""

    url: str
    """The address for `training_data_url` of a job."""
    digest: str
    """The SHA-256 of the JSON lines."""
    rows: int
    bytes: int
    """Of the JSON lines, uncompressed."""
    ignored_fields: dict[str, int]
    """Rows that have a key which training doesn't read, by the key's name."""
    created_at: datetime


class DatasetDeleted(BaseModel):
    id: str
    deleted: bool = True


class TrainingJobResponse(BaseModel):
    id: UUID


class TrainingJob(Listed):
    model_id: str
    kind: str
    """rl (reinforcement learning), sft (supervised fine-tuning) or dpo (preference pairs); others may follow."""
    state: JobState
    attempt: int
    """The number of times that the job was started."""
    error: str | None
    """The reason why the job failed or is retried."""
    waiting_for: str | None
    """The resource that a running job needs before it can start, like learners that don't fit on the cluster."""
    step: int | None
    """The version that the job made."""
    trained: dict[str, int] | None
    """What trains: numbers of groups, trajectories, packed sequences and tokens. Null before the training starts."""
    not_trained: dict[str, int]
    """The trajectories that don't train, by reason."""
    retokenised_tokens: int | None
    """Trained tokens that aren't known to be those that were sampled. Null before the training starts."""
    untrainable_tokens: dict[str, int]
    """Sampled tokens that can't train, whatever their reward, by reason."""
    warnings: list[str]
    """Sentences about data that doesn't train as it might seem; the job's events have them with counts."""
    cancel_requested: bool
    options: dict[str, Any] = Field(default_factory=dict)
    """The job's own options, as its post set them; the others have their defaults."""
    num_events: int
    num_gradient_steps: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class TrainingJobEvent(Listed):
    type: Literal[
        "training_started",
        "warning",
        "logprobs_rescored",
        "engine_disagrees",
        "gradient_step",
        "training_ended",
        "training_failed",
    ]
    data: dict[str, Any]
    created_at: datetime


class JobArtifact(Listed):
    """A file that a job, or a run of a Tinker client, wrote; its id is its name."""

    size_bytes: int


class LogEntry(Listed):
    split: str
    metrics: dict[str, float]
    created_at: datetime


class ApiKey(Listed):
    """A key without its secret, of which only a hash is stored."""

    name: str
    entity: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None


class CreatedApiKey(ApiKey):
    key: str
    """The secret, to be sent as a bearer token. It is never shown again."""


class KeyRevoked(BaseModel):
    id: str
    revoked: bool = True


class InferenceModel(Listed):
    """A model name for completions, as OpenAI's API lists it."""

    object: Literal["model"] = "model"
    created: int
    owned_by: str


class InferenceModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[InferenceModel]


class Health(BaseModel):
    status: Literal["ok", "degraded"]
    reasons: list[str]


class Readiness(BaseModel):
    status: Literal["ready", "not_ready"]
    missing: list[str]
    """A sentence for each part that keeps completions or jobs waiting."""
