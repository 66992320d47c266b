"""The routes of OpenAI's and Anthropic's protocols: answers from a pinned policy version, and the model names."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from tandem.cluster.engine.requests.headers import DIGEST_HEADER, REPLICA_HEADER, VERSION_HEADER
from tandem.cluster.engine.requests.protocols import CHAT, COMPLETIONS, COUNT_TOKENS, MESSAGES, RESPONSES
from tandem.serve.api.auth import InferCaller
from tandem.serve.api.bodies.json_body import JsonText, documented, json_text
from tandem.serve.api.engine.completion import complete
from tandem.serve.api.services import ServicesDep
from tandem.serve.api.wire.responses import InferenceModel, InferenceModels
from tandem.serve.api.wire.views import inference_model_view
from tandem.serve.errors import NotFoundError
from tandem.serve.names import quoted

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
    return await complete(request, CHAT, body, caller, services)


@router.post("/completions", **documented(headers=_HEADERS))
async def create_completion(request: Request, caller: InferCaller, body: JsonBody, services: ServicesDep) -> Response:
    """Create a completion of plain text or token ids; otherwise like chat completions."""
    return await complete(request, COMPLETIONS, body, caller, services)


@router.post("/responses", **documented(headers=_HEADERS))
async def create_response(request: Request, caller: InferCaller, body: JsonBody, services: ServicesDep) -> Response:
    """Create a response in OpenAI's Responses protocol; otherwise like chat completions.

    Nothing is stored, so `input` is the whole conversation and `store` in the answer is false. Tools are functions and
    custom tools that the client runs. Unsupported fields are refused by name. The answer has `policy_version`, and
    `token_generations` with the prompt's token ids and the sampled tokens with their logprobs; in a stream, that of
    `response.completed`.
    """
    return await complete(request, RESPONSES, body, caller, services)


@router.get("/responses/{response_id}")
@router.delete("/responses/{response_id}")
@router.get("/responses/{response_id}/input_items")
@router.post("/responses/{response_id}/cancel")
async def find_response(response_id: str, caller: InferCaller) -> None:
    """Answer 404: responses aren't stored, and none runs in the background."""
    raise NotFoundError(
        f"There is no response {quoted(response_id)}: this service stores none, so `store` is false in every answer. "
        "Send the whole conversation as `input`, and end a running response by closing its connection.",
        "response_not_found",
        "response_id",
    )


@router.post("/messages", **documented(headers=_HEADERS))
async def create_message(request: Request, caller: InferCaller, body: JsonBody, services: ServicesDep) -> Response:
    """Create a message in Anthropic's Messages protocol; otherwise like chat completions.

    The key may be in `x-api-key`, and errors have Anthropic's shape. Unsupported fields are refused by name. The
    message has `policy_version`, `sampled_with`, `prompt_token_ids`, `token_ids` and `logprobs`; in a stream,
    `message_start` has the first three in `message`, and `message_delta` the others.
    """
    return await complete(request, MESSAGES, body, caller, services)


@router.post("/messages/count_tokens", **documented(headers=_HEADERS))
async def count_tokens(request: Request, caller: InferCaller, body: JsonBody, services: ServicesDep) -> Response:
    """Count the tokens of a message's prompt, as the chat template of the model renders it."""
    return await complete(request, COUNT_TOKENS, body, caller, services)


@router.get("/models")
def list_inference_models(caller: InferCaller, services: ServicesDep) -> InferenceModels:
    """List the model names for completions: base models and the entity's models. Append `:stepN` for a version."""
    bases = [InferenceModel(id=name, created=0, owned_by="tandem") for name in services.base_models]
    own = [inference_model_view(row) for row in services.store.models.page(caller.entity)]
    return InferenceModels(data=bases + own)
