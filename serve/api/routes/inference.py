"""The OpenAI-compatible routes: completions from a pinned policy version, and the list of model names."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from tandem.cluster.engine.engine import adapter_name
from tandem.serve.api.auth import Caller, InferCaller
from tandem.serve.api.bodies.json_body import documented, json_object
from tandem.serve.api.connection import while_connected
from tandem.serve.api.engine.answers import Annotator, error_events, fill_in_defaults, read_object
from tandem.serve.api.engine.call import EngineCall
from tandem.serve.api.engine.headers import DIGEST_HEADER, REPLICA_HEADER, VERSION_HEADER
from tandem.serve.api.engine.sampling import sampled_with
from tandem.serve.api.error_responses import as_serve_error, error_content
from tandem.serve.api.request_ids import request_id, unexpected_error
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.responses import InferenceModel, InferenceModels
from tandem.serve.api.wire.views import inference_model_view
from tandem.serve.errors import InvalidRequestError, NotFoundError, Problem, UnavailableError
from tandem.serve.names import quoted
from tandem.serve.store.versions import PinnedPolicy

logger = logging.getLogger(__name__)
router = APIRouter(tags=["inference"])
_HEADERS = {
    VERSION_HEADER: "The policy version that generated the completion.",
    DIGEST_HEADER: "The digest of that version's checkpoint.",
    REPLICA_HEADER: "The engine replica that generated it: its id in Ray Serve's dashboard and log files.",
}
JsonObject = Annotated[dict[str, Any], Depends(json_object)]

_NAME = re.compile(r"(?:wandb-artifact:///)?([\w.-]+)/([\w.-]+)/([\w.-]+)(?::step(0|[1-9][0-9]{0,8}))?")


@router.post("/chat/completions", **documented(headers=_HEADERS))
async def create_chat_completion(
    request: Request, caller: InferCaller, body: JsonObject, services: ServicesDep
) -> Response:
    """Create a chat completion from the newest version of the model, or from the version that `:stepN` names.

    Requests and responses are those of vLLM's endpoint. Logprobs and token ids are returned by default, and every
    choice has the `policy_version` that generated it and `sampled_with`, the options that made it sample from another
    distribution than the policy's.
    """
    return await _complete(request, "/v1/chat/completions", body, caller, services)


@router.post("/completions", **documented(headers=_HEADERS))
async def create_completion(request: Request, caller: InferCaller, body: JsonObject, services: ServicesDep) -> Response:
    """Create a completion of plain text or token ids; otherwise like chat completions."""
    return await _complete(request, "/v1/completions", body, caller, services)


@router.get("/models")
def list_inference_models(caller: InferCaller, services: ServicesDep) -> InferenceModels:
    """List the model names for completions: base models and the entity's models. Append `:stepN` for a version."""
    bases = [InferenceModel(id=name, created=0, owned_by="tandem") for name in services.base_models]
    own = [inference_model_view(row) for row in services.store.models.page(caller.entity)]
    return InferenceModels(data=bases + own)


async def _complete(request: Request, path: str, body: dict[str, Any], caller: Caller, services: Services) -> Response:
    name = body.get("model")
    if not isinstance(name, str):
        raise InvalidRequestError([Problem(("body", "model"), "must be the name of a model, like entity/project/name")])
    policy = await run_in_threadpool(_pin, name, caller, services)
    asked = fill_in_defaults(body, is_chat=path.endswith("/chat/completions"))
    id = request_id(request.scope)
    # vLLM uses it as the name of the generation, and clients may send one id twice.
    forwarded = [("content-type", "application/json"), ("x-request-id", f"{id}-{uuid.uuid4().hex[:8]}")]
    stream = services.engine.http(policy.base_model, "POST", path, forwarded, json.dumps(asked).encode(), policy.digest)
    call = EngineCall(stream, services.config.deadlines.inference_s)
    annotator = Annotator(name, adapter_name(policy.digest), policy.step, sampled_with(asked))
    headers = {VERSION_HEADER: str(policy.step), DIGEST_HEADER: policy.digest}
    try:
        status, engine_headers = await while_connected(request, call.start())
        kept = dict(engine_headers)
        headers |= {key: kept[key] for key in ("content-type", "retry-after", REPLICA_HEADER) if key in kept}
        if headers.get("content-type", "").startswith("text/event-stream"):
            return _EventStream(call, _events(call, annotator, id), status, headers)
        content = await while_connected(request, call.content())
    except BaseException:
        await call.close()
        raise
    if status >= 400 and "error" not in (read_object(content) or {}):
        raise UnavailableError(
            f"The engine failed on this request with status {status} and gave no reason. Retry the request; "
            f"if that doesn't help, search the engine's log for {id}.",
            "engine_failed",
        )
    return Response(annotator.body(content), status, headers)


def _pin(name: str, caller: Caller, services: Services) -> PinnedPolicy:
    """Choose the version that answers, once for the whole request. Raises NotFoundError, UnavailableError."""
    if name in services.base_models:
        return services.store.versions.resolve_base(name)
    parts = _NAME.fullmatch(name)
    if parts is None or parts[1] != caller.entity:
        raise NotFoundError(
            f"There is no model {quoted(name)}. Request entity/project/name[:stepN] of a model that this key may use, "
            f"or a base model: {', '.join(sorted(services.base_models))}.",
            "model_not_found",
            "model",
        )
    return services.store.versions.resolve(parts[1], parts[2], parts[3], None if parts[4] is None else int(parts[4]))


async def _events(call: EngineCall, annotator: Annotator, id: str) -> AsyncGenerator[bytes]:
    """Yield the engine's events. An error can't change the status any more, so it becomes the last event."""
    try:
        async for events in annotator.events(call.chunks()):
            yield events
    except Exception as error:
        known = as_serve_error(error)
        if known is None:
            logger.exception("A stream of completions failed, request %s", id)
        yield error_events(error_content(known) if known else unexpected_error(id))


class _EventStream(StreamingResponse):
    """A response that closes the engine call when it ends, however it ends."""

    def __init__(self, call: EngineCall, events: AsyncGenerator[bytes], status: int, headers: dict[str, str]):
        super().__init__(events, status, {**headers, "cache-control": "no-cache"})
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._call.close()
