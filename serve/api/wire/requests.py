"""Request bodies. Those of training jobs publish the schema that existing clients were generated from."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tandem.rl.config import TrainingConfig
from tandem.rl.supervised.config import SupervisedConfig
from tandem.rl.trajectories import TrajectoryGroup
from tandem.serve.keys import Role
from tandem.serve.names import NAME, NAME_RULE

MAX_STEP = 2**31 - 1


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(f"must be {NAME_RULE}: models are requested as entity/project/name")
    return value


Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": f"^{NAME.pattern}$"})]


def _open_in_schema(schema: dict[str, Any]) -> None:
    """Unknown keys are rejected, so that a misspelt one is noticed, but the published schema doesn't say so."""
    schema.pop("additionalProperties", None)


def _no_null_default(schema: dict[str, Any]) -> None:
    _open_in_schema(schema)
    del schema["properties"]["experimental_config"]["default"]


class RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra=_open_in_schema)


ModuleName = Annotated[str, Field(max_length=128)]


class ModelLora(RequestBody):
    """LoRA settings of a model. Those that are left out are the base model's (`lora` of its configuration)."""

    r: Annotated[int, Field(ge=1)] | None = None
    """Rank."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The update is scaled by alpha / r."""
    target_modules: (
        Annotated[list[Annotated[str, Field(max_length=128)]], Field(min_length=1, max_length=256)] | None
    ) = None
    """Last parts of the names of the adapted modules."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """Seed of version 0."""


class ForkFrom(RequestBody):
    """The version of another model from which a new model begins."""

    model: Annotated[str, Field(max_length=512)]
    """The model's id, or its name: entity/project/name or project/name."""
    step: Annotated[int, Field(ge=0, le=MAX_STEP)] | None = None
    """The newest version if unset."""
    optimizer: bool | None = None
    """Continue with the version's optimizer state. Unset: if it has one."""


class CreateModel(RequestBody):
    """A model to register: a LoRA policy on a base model, under a name."""

    entity: Name | None = None
    """The entity of the key if unset."""
    project: Name
    name: Name
    base_model: str
    return_existing: bool = False
    """Return the model of this name if it exists, instead of an error."""
    lora: ModelLora | None = None
    """LoRA settings of its own, within the limits of the base model (`lora_limits`)."""
    from_: Annotated[ForkFrom | None, Field(alias="from")] = None
    """Make it a fork of another model's version, with that model's LoRA settings."""


class DeleteCheckpoints(RequestBody):
    steps: Annotated[list[Annotated[int, Field(ge=0, le=MAX_STEP)]], Field(max_length=10_000)]


class CreateTrainingJob(RequestBody):
    model_config = ConfigDict(json_schema_extra=_no_null_default)

    model_id: UUID
    trajectory_groups: list[TrajectoryGroup]
    experimental_config: TrainingConfig | None = None


def _empty(value: dict[str, Any]) -> dict[str, Any]:
    if value:
        raise ValueError("has no options for supervised jobs; leave it out")
    return value


class CreateSFTTrainingJob(RequestBody):
    """A supervised job: a model, the address of its data, and options."""

    model_id: UUID
    training_data_url: Annotated[str, Field(min_length=1, max_length=2048)]
    """The `url` of a dataset, `tandem-dataset:///DIGEST`."""
    config: SupervisedConfig | None = None
    experimental_config: Annotated[dict[str, Any], AfterValidator(_empty)] | None = None
    """Null or empty."""


class LogTrajectories(RequestBody):
    model_id: UUID
    split: Name
    trajectory_groups: list[TrajectoryGroup]


class StartDownload(RequestBody):
    """A file to download in a browser."""

    path: Annotated[str, Field(max_length=1024)]
    """The path of the download, like /v1/preview/models/MODEL_ID/versions/3/adapter."""


class CreateKey(RequestBody):
    """An API key to create, for the caller's entity."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
    """A label, like the program or person that uses the key."""
    role: Role


REQUEST_BODIES: tuple[type[RequestBody], ...] = (
    CreateModel,
    DeleteCheckpoints,
    CreateTrainingJob,
    CreateSFTTrainingJob,
    LogTrajectories,
    StartDownload,
    CreateKey,
)
