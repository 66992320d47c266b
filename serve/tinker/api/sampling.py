"""Routes of sampling clients. Their results are retrieved as those of calls are."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from tandem.serve.api.auth import InferCaller
from tandem.serve.api.bodies.json_body import JsonText, Received, documented, json_body, json_text
from tandem.serve.tinker.api.context import TinkerDep
from tandem.serve.tinker.sampling.sample_routes import start_sample
from tandem.serve.tinker.wire.requests import CreateSamplingSession
from tandem.serve.tinker.wire.responses import SamplePromise, SamplerShown, SamplingSessionCreated

router = APIRouter(tags=["tinker"])


@router.post("/create_sampling_session", **documented(CreateSamplingSession))
def create_sampling_session(
    caller: InferCaller,
    body: Annotated[Received[CreateSamplingSession], Depends(json_body(CreateSamplingSession))],
    tinker: TinkerDep,
) -> SamplingSessionCreated:
    """Pin a sampling client to a checkpoint, or to a base model. A repeat returns the same one."""
    wanted = body.value
    if wanted.model_path is None and wanted.base_model is not None:
        tinker.base_models.check_name(wanted.base_model)
    sampler = tinker.store.samplers.create(
        caller.entity,
        caller.key_id,
        wanted.session_id,
        wanted.sampling_session_seq_id,
        wanted.base_model,
        wanted.model_path,
    )
    return SamplingSessionCreated(sampling_session_id=sampler.id)


@router.get("/samplers/{sampler_id}", response_model_exclude_none=True)
def get_sampler(sampler_id: str, caller: InferCaller, tinker: TinkerDep) -> SamplerShown:
    """Return what a sampling client samples."""
    sampler = tinker.store.samplers.get(caller.entity, sampler_id)
    return SamplerShown(sampler_id=sampler.id, base_model=sampler.base_model, model_path=sampler.path)


@router.post("/asample", response_model=SamplePromise, **documented())
async def asample(
    request: Request, caller: InferCaller, body: Annotated[JsonText, Depends(json_text)], tinker: TinkerDep
) -> Response:
    """Start a sample on an engine, which keeps it until it is retrieved."""
    return await start_sample(request, caller, body, tinker.sampling)
