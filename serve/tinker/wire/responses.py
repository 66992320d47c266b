"""Answers of the Tinker API to JSON requests. Fields that a client's type doesn't allow to be null are left out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Response(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class ClientConfig(Response):
    """How the SDK talks to this service."""

    pjwt_auth_enabled: bool = False
    credential_default_source: str = "api_key"
    parallel_fwdbwd_chunks: bool = True
    proto_compress_fwdbwd: bool = False
    fwdbwd_max_chunk_len: int = 1024
    """Datums of a call."""
    fwdbwd_max_chunk_bytes_count: int = 5_000_000
    sample_max_concurrent_requests: int
    sample_use_retrieve_futures: bool = False
    custom_loss_server_side: bool = False
    sample_join_sampling_session: bool = False
    use_pyqwest_transport: bool = False
    """Python's own TLS and proxy settings then hold for the SDK, too."""


class ClientDynamicConfig(Response):
    refresh_interval_sec: int = 300
    sample_cancel_enabled: bool
    sample_cancel_max_batch_size: int = 64


class SessionCreated(Response):
    type: Literal["create_session"] = "create_session"
    session_id: str
    info_message: str | None = None
    warning_message: str | None = None


class Heartbeat(Response):
    type: Literal["session_heartbeat"] = "session_heartbeat"


class Accepted(Response):
    status: Literal["accepted"] = "accepted"


class SessionFinished(Response):
    session_id: str


class Healthy(Response):
    status: Literal["ok"] = "ok"


class SupportedModel(Response):
    model_name: str
    max_context_length: int
    trainable: bool
    sampleable: bool


class Capabilities(Response):
    supported_models: list[SupportedModel]


class Future(Response):
    """A call that was accepted. `retrieve_future` has its result."""

    request_id: str
    model_id: str


class ModelData(Response):
    model_name: str
    tokenizer_id: str
    """A Hugging Face id, or a directory on the service's machine."""


class AdamW(Response):
    type: Literal["adamw"] = "adamw"


class ModelInfo(Response):
    type: Literal["get_info"] = "get_info"
    model_data: ModelData
    model_id: str
    optimizer_config: AdamW = AdamW()
    is_lora: Literal[True] = True
    lora_rank: int
    model_name: str
    train_unembed: Literal[False] = False


class TryAgain(Response):
    """The result isn't there yet."""

    type: Literal["try_again"] = "try_again"
    request_id: str
    queue_state: Literal["active", "paused_capacity", "paused_rate_limit"]
    queue_state_reason: str | None = None


class Cancelled(Response):
    request_id: str


class SamplingSessionCreated(Response):
    type: Literal["create_sampling_session"] = "create_sampling_session"
    sampling_session_id: str


class SamplerShown(Response):
    sampler_id: str
    base_model: str
    model_path: str | None = None


class SamplePromise(Response):
    """The id by which the result is retrieved, and a name for each of its sequences."""

    request_id: str
    sample_sequence_ids: list[str]


JsonObject = dict[str, Any]
