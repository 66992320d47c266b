"""vLLM's completion handlers behind routes of our own, which take a parsed request and write the answer once.

vLLM's own routes parse the body again, and write JSON from an intermediate form that takes longer than to make the
answer. Importing this module imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tandem.cluster.engine.requests.chat.answers import Annotator
from tandem.cluster.engine.requests.generations import RECORDED, RecordingClient
from tandem.cluster.engine.requests.messages.chat_for_messages import ChatForMessages, as_the_protocol_says
from tandem.cluster.engine.requests.openai_app import ASGIApp
from tandem.cluster.engine.requests.protocols import CHAT, COMPLETIONS, COUNT_TOKENS, MESSAGES, PATHS, RESPONSES

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

ROUTES = frozenset(("POST", path) for path in PATHS)  # vLLM's others change the shared engine
REQUEST, ANNOTATOR = "tandem.request", "tandem.annotator"
"""Keys of the scope: the parsed body, and the `Annotator` of its answer."""
CLIENT_CLOSED = 499

Handler = Callable[[Any, "Request"], Awaitable[Any]]


def completion_app(vllm: FastAPI) -> ASGIApp:
    """Return an application with vLLM's handlers and answers to errors, for scopes with REQUEST and ANNOTATOR."""
    from starlette.applications import Starlette
    from starlette.routing import Route
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    chat, completion = vllm.state.openai_serving_chat, vllm.state.openai_serving_completion
    responses, messages = vllm.state.openai_serving_responses, vllm.state.anthropic_serving_messages
    for layer in (responses, messages):
        layer.engine_client = RecordingClient(layer.engine_client)
    responses.return_tokens_as_token_ids = False  # `token_generations` have the ids, so logprobs may have the texts
    messages.create_chat_completion = ChatForMessages(messages.create_chat_completion)
    messages.to_chat_completion_request = as_the_protocol_says(messages.to_chat_completion_request)
    endpoints = {
        CHAT: _endpoint(ChatCompletionRequest, chat.create_chat_completion),
        COMPLETIONS: _endpoint(CompletionRequest, completion.create_completion),
        RESPONSES: _endpoint(ResponsesRequest, responses.create_responses),
        MESSAGES: _endpoint(AnthropicMessagesRequest, messages.create_messages),
        COUNT_TOKENS: _endpoint(AnthropicCountTokensRequest, messages.count_tokens),
    }
    routes = [Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()]
    app = Starlette(routes=routes, exception_handlers=vllm.exception_handlers)
    app.state = vllm.state
    return app


def _endpoint(kind: type[BaseModel], handle: Handler) -> Callable[[Request], Awaitable[Response]]:
    from fastapi.exceptions import RequestValidationError
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.entrypoints.serve.utils.api_utils import with_cancellation

    async def answer(asked: BaseModel, request: Request) -> Response:
        annotator: Annotator = request.scope[ANNOTATOR]
        result = await handle(asked, request)
        if isinstance(result, ErrorResponse):
            return JSONResponse(result.model_dump(), result.error.code)
        if isinstance(result, BaseModel):
            return Response(annotator.response(result), media_type="application/json")
        return StreamingResponse(annotator.stream(result), media_type="text/event-stream")

    cancellable = with_cancellation(answer)

    async def endpoint(request: Request) -> Response:
        body = request.scope[REQUEST]
        RECORDED.set(request.scope[ANNOTATOR].generations)
        try:
            asked = kind.model_validate({**body})  # vLLM's validators write into what they get
        except ValidationError as error:
            details = error.errors(include_url=False)
            raise RequestValidationError(
                [{**one, "loc": ("body", *one["loc"])} for one in details], body=body
            ) from None
        return await cancellable(asked, request) or Response(status_code=CLIENT_CLOSED)

    return endpoint
