"""Routes of sessions and of the SDK's start."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from tandem.serve.api.auth import InferCaller
from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.tinker.api.context import TinkerDep
from tandem.serve.tinker.wire.requests import AskConfig, CreateSession, FinishSession, SessionHeartbeat, Telemetry
from tandem.serve.tinker.wire.responses import (
    Accepted,
    Capabilities,
    ClientConfig,
    ClientDynamicConfig,
    Healthy,
    Heartbeat,
    SessionCreated,
    SessionFinished,
    SupportedModel,
)

logger = logging.getLogger(__name__)
NO_UNEMBED = (
    "This service adapts attention and MLP layers, and not the output layer: train_unembed=True, the default of "
    "create_lora_training_client, is taken as False."
)
MAX_SAMPLES = 1000
"""Of one sampling client at once. More wait in the client."""
router = APIRouter(tags=["tinker"])


@router.post("/client/config", **documented(AskConfig))
def client_config(
    caller: InferCaller, body: Annotated[Received[AskConfig], Depends(json_body(AskConfig))], tinker: TinkerDep
) -> ClientConfig:
    """Return how the SDK talks to this service."""
    return ClientConfig(sample_max_concurrent_requests=min(MAX_SAMPLES, tinker.config.max_samples_waiting))


@router.post("/client/dynamic_config", **documented(AskConfig))
def client_dynamic_config(
    caller: InferCaller, body: Annotated[Received[AskConfig], Depends(json_body(AskConfig))]
) -> ClientDynamicConfig:
    """Return settings that the SDK asks for again from time to time."""
    return ClientDynamicConfig(sample_cancel_enabled=True)


@router.get("/healthz")
def healthz(caller: InferCaller) -> Healthy:
    """Answer while the service does."""
    return Healthy()


@router.get("/get_server_capabilities")
def get_server_capabilities(caller: InferCaller, tinker: TinkerDep) -> Capabilities:
    """List the base models, with the longest sequence of each in tokens."""
    bases = tinker.base_models
    return Capabilities(
        supported_models=[
            SupportedModel(
                model_name=name, max_context_length=bases.sizes(name).max_length, trainable=True, sampleable=True
            )
            for name in bases.names
        ]
    )


@router.post("/create_session", response_model_exclude_none=True, **documented(CreateSession))
def create_session(
    request: Request,
    caller: InferCaller,
    body: Annotated[Received[CreateSession], Depends(json_body(CreateSession))],
    tinker: TinkerDep,
) -> SessionCreated:
    """Start a session, to which models and samplers belong."""
    wanted = body.value
    session = tinker.store.sessions.create(
        caller.entity,
        caller.key_id,
        tags=wanted.tags,
        user_metadata=wanted.user_metadata or {},
        sdk_version=wanted.sdk_version,
        idempotency_key=request.headers.get("x-idempotency-key"),
        project=wanted.project_id,
        display_name=wanted.display_name,
    )
    may_train = caller.role != "infer"
    if may_train:
        _ = tinker.warm_up
    return SessionCreated(session_id=session.id, warning_message=NO_UNEMBED if may_train else None)


@router.post("/session_heartbeat", **documented(SessionHeartbeat))
def session_heartbeat(
    caller: InferCaller,
    body: Annotated[Received[SessionHeartbeat], Depends(json_body(SessionHeartbeat))],
    tinker: TinkerDep,
) -> Heartbeat:
    """Keep a session alive. 410 once it has finished."""
    tinker.store.sessions.heartbeat(caller.entity, body.value.session_id)
    return Heartbeat()


@router.post("/telemetry", **documented(Telemetry))
def telemetry(caller: InferCaller, body: Annotated[Received[Telemetry], Depends(json_body(Telemetry))]) -> Accepted:
    """Take what a client says of itself, and keep nothing of it."""
    return Accepted()


@router.post("/sessions/{session_id}/finish", **documented(FinishSession))
def finish_session(
    session_id: str,
    caller: InferCaller,
    body: Annotated[Received[FinishSession], Depends(json_body(FinishSession))],
    tinker: TinkerDep,
) -> SessionFinished:
    """End a session. Its models stay; unload_model ends one."""
    wanted = body.value
    logger.info("Session %s finished: %s", session_id, wanted.reason.type)
    tinker.store.sessions.finish(caller.entity, session_id, wanted.reason.type, wanted.detail)
    return SessionFinished(session_id=session_id)
