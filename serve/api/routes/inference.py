"""The OpenAI-compatible routes: completions from a pinned policy version, and the list of model names."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from tandem.cluster.engine.requests.headers import DIGEST_HEADER, REPLICA_HEADER, VERSION_HEADER
from tandem.serve.api.auth import InferCaller
from tandem.serve.api.bodies.json_body import JsonText, documented, json_text
from tandem.serve.api.engine.completion import complete
from tandem.serve.api.services import ServicesDep
from tandem.serve.api.wire.responses import InferenceModel, InferenceModels
from tandem.serve.api.wire.views import inference_model_view

router = APIRouter(tags=["inference"])
_HEADERS = {
    VERSION_HEADER: "The policy version that generated the completion.",
    DIGEST_HEADER: "The digest of that version's checkpoint.",
    REPLICA_HEADER: "The engine replica that generated it: its id in Ray Serve's dashboard and log files.",
}
JsonBody = Annotated[JsonText, Depends(json_text)]


@router.post("/chat/completions", **documented(headers=_HEADERS))
async def create_chat_completion(
    request: Request, caller: InferCaller, body: JsonBody, services: ServicesDep
) -> Response:
    """Create a chat completion from the newest version of the model, or from the version that `:stepN` names.

    Requests and responses are those of vLLM's endpoint. Logprobs and token ids are returned by default, and every
    choice has the `policy_version` that generated it and `sampled_with`, the options that made it sample from another
    distribution than the policy's.
    """
    return await complete(request, "/v1/chat/completions", body, caller, services)


@router.post("/completions", **documented(headers=_HEADERS))
async def create_completion(request: Request, caller: InferCaller, body: JsonBody, services: ServicesDep) -> Response:
    """Create a completion of plain text or token ids; otherwise like chat completions."""
    return await complete(request, "/v1/completions", body, caller, services)


@router.get("/models")
def list_inference_models(caller: InferCaller, services: ServicesDep) -> InferenceModels:
    """List the model names for completions: base models and the entity's models. Append `:stepN` for a version."""
    bases = [InferenceModel(id=name, created=0, owned_by="tandem") for name in services.base_models]
    own = [inference_model_view(row) for row in services.store.models.page(caller.entity)]
    return InferenceModels(data=bases + own)
