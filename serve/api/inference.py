"""Routes that speak OpenAI: completions from a pinned policy version, and the names one can ask for."""

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
from tandem.serve.api.completions import Annotator, error_events, fill_in_defaults, read_object
from tandem.serve.api.engine_call import EngineCall, while_connected
from tandem.serve.api.error_responses import as_serve_error, error_content, request_id, unexpected_error
from tandem.serve.api.json_body import documented, json_object
from tandem.serve.api.schemas import InferenceModel, InferenceModels
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.validation import quoted
from tandem.serve.errors import Fault, InvalidRequestError, NotFoundError, UnavailableError
from tandem.serve.store.versions import PinnedPolicy

logger = logging.getLogger(__name__)
router = APIRouter(tags=["inference"])
VERSION_HEADER, DIGEST_HEADER, REPLICA_HEADER = "x-policy-version", "x-policy-digest", "x-engine-replica"
_HEADERS = {
    VERSION_HEADER: "The version of the model that answers.",
    DIGEST_HEADER: "The digest of that version's checkpoint.",
    REPLICA_HEADER: "Which replica of the engine answers: its id in Ray Serve's dashboard and log files.",
}
JsonObject = Annotated[dict[str, Any], Depends(json_object)]

_NAME = re.compile(r"(?:wandb-artifact:///)?([\w.-]+)/([\w.-]+)/([\w.-]+)(?::step(0|[1-9][0-9]{0,8}))?")


@router.post("/chat/completions", **documented(headers=_HEADERS))
async def create_chat_completion(
    request: Request, caller: InferCaller, body: JsonObject, services: ServicesDep
) -> Response:
    """A chat completion from the newest version of the named model, or from the one that `:stepN` names.

    Takes and gives what vLLM's endpoint does. Logprobs and token ids are returned unless they are declined, and every
    choice says which version made it.
    """
    return await _complete(request, "/v1/chat/completions", body, caller, services)


@router.post("/completions", **documented(headers=_HEADERS))
async def create_completion(request: Request, caller: InferCaller, body: JsonObject, services: ServicesDep) -> Response:
    """A completion of plain text or token ids; otherwise like chat completions."""
    return await _complete(request, "/v1/completions", body, caller, services)


@router.get("/models")
def list_inference_models(caller: InferCaller, services: ServicesDep) -> InferenceModels:
    """The names that completions can be asked for: base models and the entity's models. Add `:stepN` for a version."""
    bases = [InferenceModel(id=name, created=0, owned_by="tandem") for name in services.base_models]
    own = [
        InferenceModel(id=row.path, created=int(row.created_at.timestamp()), owned_by=row.entity)
        for row in services.store.models(caller.entity)
    ]
    return InferenceModels(data=bases + own)


async def _complete(request: Request, path: str, body: dict[str, Any], caller: Caller, services: Services) -> Response:
    name = body.get("model")
    if not isinstance(name, str):
        raise InvalidRequestError([Fault(("body", "model"), "must be the name of a model, like entity/project/name")])
    policy = await run_in_threadpool(_pin, name, caller, services)
    asked = fill_in_defaults(body, is_chat=path.endswith("/chat/completions"))
    id = request_id(request.scope)
    # vLLM names the generation by it, and clients may send one id twice.
    forwarded = [("content-type", "application/json"), ("x-request-id", f"{id}-{uuid.uuid4().hex[:8]}")]
    stream = services.engine.http(policy.base_model, "POST", path, forwarded, json.dumps(asked).encode(), policy.digest)
    call = EngineCall(stream, services.config.deadlines.inference_s)
    annotator = Annotator(name, adapter_name(policy.digest), policy.step)
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
            f"The engine failed on this request with status {status} and no reason. Send it again; "
            f"if that doesn't help, the engine's log may have more under {id}.",
            "engine_failed",
        )
    return Response(annotator.body(content), status, headers)


def _pin(name: str, caller: Caller, services: Services) -> PinnedPolicy:
    """Which version answers: decided here, once for the whole request. Raises NotFoundError, UnavailableError."""
    if name in services.base_models:
        return services.store.resolve_base(name)
    parts = _NAME.fullmatch(name)
    if parts is None or parts[1] != caller.entity:
        raise NotFoundError(
            f"There is no model {quoted(name)}. Ask for entity/project/name[:stepN] of a model that this key may use, "
            f"or for a base model: {', '.join(sorted(services.base_models))}.",
            "model_not_found",
            "model",
        )
    return services.store.resolve(parts[1], parts[2], parts[3], None if parts[4] is None else int(parts[4]))


async def _events(call: EngineCall, annotator: Annotator, id: str) -> AsyncGenerator[bytes]:
    """The engine's events. An error can't change the status any more, so it becomes the last event."""
    try:
        async for events in annotator.events(call.chunks()):
            yield events
    except Exception as error:
        known = as_serve_error(error)
        if known is None:
            logger.exception("A stream of completions failed, request %s", id)
        yield error_events(error_content(known) if known else unexpected_error(id))


class _EventStream(StreamingResponse):
    """Ends the generation when the response has ended, however it did."""

    def __init__(self, call: EngineCall, events: AsyncGenerator[bytes], status: int, headers: dict[str, str]):
        super().__init__(events, status, {**headers, "cache-control": "no-cache"})
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._call.close()
