"""vLLM's completion handlers behind routes of our own, which take a parsed request and write the answer once.

vLLM's own routes parse the body again, and write JSON from an intermediate form that takes longer than to make the
answer. Importing this module imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tandem.cluster.engine.requests.openai_app import ASGIApp

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ROUTES = frozenset({("POST", CHAT), ("POST", COMPLETIONS)})  # vLLM's others change the shared engine
REQUEST, ANNOTATOR = "tandem.request", "tandem.annotator"
"""Keys of the scope: the parsed body, and the `Annotator` of its answer."""
CLIENT_CLOSED = 499

Handler = Callable[[Any, "Request"], Awaitable[Any]]


def completion_app(vllm: FastAPI) -> ASGIApp:
    """Return an application with vLLM's handlers and answers to errors, for scopes with REQUEST and ANNOTATOR."""
    from starlette.applications import Starlette
    from starlette.routing import Route
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    chat, completion = vllm.state.openai_serving_chat, vllm.state.openai_serving_completion
    endpoints = {
        CHAT: _endpoint(ChatCompletionRequest, chat.create_chat_completion),
        COMPLETIONS: _endpoint(CompletionRequest, completion.create_completion),
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
        result = await handle(asked, request)
        if isinstance(result, ErrorResponse):
            return JSONResponse(result.model_dump(), result.error.code)
        if isinstance(result, BaseModel):
            return Response(request.scope[ANNOTATOR].response(result), media_type="application/json")
        return StreamingResponse(result, media_type="text/event-stream")

    cancellable = with_cancellation(answer)

    async def endpoint(request: Request) -> Response:
        body = request.scope[REQUEST]
        try:
            asked = kind.model_validate(body)
        except ValidationError as error:
            details = error.errors(include_url=False)
            raise RequestValidationError(
                [{**one, "loc": ("body", *one["loc"])} for one in details], body=body
            ) from None
        return await cancellable(asked, request) or Response(status_code=CLIENT_CLOSED)

    return endpoint
