"""JSON requests of the Tinker API. Unknown fields are refused by name, so that nothing is silently left undone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from tandem.serve.api.wire.requests import Name, RequestBody
from tandem.serve.names import NAME, NAME_RULE

MAX_SEQ = 2**31 - 1
HOUR_S, TEN_YEARS_S = 3600, 10 * 366 * 24 * 3600
Text = Annotated[str, Field(max_length=512)]
Sequence = Annotated[int, Field(ge=0, le=MAX_SEQ)]
"""A number that the client counts up."""
SeqId = Annotated[int, Field(ge=1, le=MAX_SEQ)]
Ttl = Annotated[int, Field(ge=HOUR_S, le=TEN_YEARS_S)]
"""Seconds."""
Metadata = Annotated[dict[str, Any], Field(max_length=256)]


def _checkpoint_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(f"must be {NAME_RULE}: it becomes the last part of a tinker:// path")
    return value


CheckpointName = Annotated[str, AfterValidator(_checkpoint_name)]


class SdkBody(RequestBody):
    model_config = ConfigDict(protected_namespaces=())


class AskConfig(SdkBody):
    sdk_version: Text


class CreateSession(SdkBody):
    tags: Annotated[list[Text], Field(max_length=256)]
    user_metadata: Metadata | None = None
    sdk_version: Text
    project_id: Name | None = None
    """The project of the session's models; by default the one of the service's configuration."""
    display_name: Text | None = None
    type: Literal["create_session"] = "create_session"


class SessionHeartbeat(SdkBody):
    session_id: Text
    type: Literal["session_heartbeat"] = "session_heartbeat"


class Telemetry(SdkBody):
    """Events of the SDK, which aren't kept."""

    events: list[dict[str, Any]]
    platform: Text
    sdk_version: Text
    session_id: Text
    process_uuid: Text


class FinishReason(SdkBody):
    type: Literal["success", "errored", "interrupted"]


class FinishSession(SdkBody):
    reason: FinishReason
    detail: Annotated[str, Field(max_length=16384)] | None = None


class RunLora(SdkBody):
    rank: Annotated[int, Field(ge=1, le=512)] = 32
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """Of the A matrices. Unset: it follows from the session and the model's number."""
    train_unembed: bool = True
    """Accepted, and not done: the answers say train_unembed false."""
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(SdkBody):
    """The optimizer of a model."""

    type: Text = "adamw"
    version: int | None = None


class CreateRun(SdkBody):
    session_id: Text
    model_seq_id: Sequence
    base_model: Text
    user_metadata: Metadata | None = None
    lora_config: RunLora = RunLora()
    optimizer_config: OptimizerConfig = OptimizerConfig()
    type: Literal["create_model"] = "create_model"


class GetInfo(SdkBody):
    model_id: Text
    type: Literal["get_info"] = "get_info"


class UnloadModel(SdkBody):
    model_id: Text
    type: Literal["unload_model"] = "unload_model"


class Call(SdkBody):
    """One ordered call of a model."""

    model_id: Text
    seq_id: SeqId
    """The calls of a model have the numbers 1, 2, 3, ... and are run in this order."""


class AdamParams(SdkBody):
    """One step of AdamW."""

    learning_rate: Annotated[float, Field(ge=0)] = 1e-4
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-12
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled."""
    grad_clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Global norm above which the gradient is scaled down; 0: never."""


class OptimStep(Call):
    adam_params: AdamParams = AdamParams()
    optimizer_params: dict[str, Any] | None = None
    """Of other optimizers, which aren't served."""
    type: Literal["optim_step"] = "optim_step"


class SaveWeights(Call):
    path: CheckpointName | None = None
    """The checkpoint's name; by default the number of the call."""
    ttl_seconds: Ttl | None = None
    overwrite: bool = False
    user_metadata: Annotated[dict[str, str], Field(max_length=256)] | None = None
    type: Literal["save_weights"] = "save_weights"


class SaveWeightsForSampler(Call):
    path: CheckpointName | None = None
    """The checkpoint's name. Unset: a sampler is made, and the checkpoint stays as long as it does."""
    sampling_session_seq_id: Sequence | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    ttl_seconds: Ttl | None = None
    user_metadata: Annotated[dict[str, str], Field(max_length=256)] | None = None
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"


class SaveWeightsExternal(Call):
    path: CheckpointName
    """The checkpoint's name."""
    ttl_seconds: Ttl | None = None
    age_encryption_recipients: list[Text] | None = None
    type: Literal["save_weights_external"] = "save_weights_external"


class LoadWeights(SdkBody):
    """A checkpoint that a model continues from: a new one with session_id and model_seq_id, or the next call of one
    that exists with model_id and seq_id."""

    model_id: Text | None = None
    seq_id: SeqId | None = None
    session_id: Text | None = None
    model_seq_id: Sequence | None = None
    base_model: Text | None = None
    user_metadata: Metadata | None = None
    path: Text
    optimizer: bool
    optimizer_config: OptimizerConfig | None = None
    weights_access_token: Text | None = None
    type: Literal["load_weights"] = "load_weights"


class CreateSamplingSession(SdkBody):
    session_id: Text
    sampling_session_seq_id: Sequence
    base_model: Text | None = None
    model_path: Text | None = None
    """tinker://..."""
    type: Literal["create_sampling_session"] = "create_sampling_session"


class RetrieveFuture(SdkBody):
    request_id: Text
    allow_metadata_only: bool = False


class CancelFuture(SdkBody):
    request_id: Text


class AnyFields(SdkBody):
    """The body of a request that is refused whatever it says."""

    model_config = ConfigDict(extra="allow")


REQUEST_BODIES: tuple[type[RequestBody], ...] = (
    AskConfig,
    CancelFuture,
    CreateRun,
    CreateSamplingSession,
    CreateSession,
    FinishSession,
    GetInfo,
    LoadWeights,
    OptimStep,
    RetrieveFuture,
    SaveWeights,
    SaveWeightsExternal,
    SaveWeightsForSampler,
    SessionHeartbeat,
    Telemetry,
    UnloadModel,
    AnyFields,
)
"""For the OpenAPI document."""
