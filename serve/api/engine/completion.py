"""A completion on its way through the API: the version is pinned once, and the engine's answer is passed on as it is.

The API's routes and the proxies' gateway both answer with this.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response
from pydantic_core import from_json
from starlette.types import Receive, Scope, Send

from tandem.cluster.engine.metrics.usage import Charged
from tandem.cluster.engine.requests.headers import (
    CHARGED_HEADER,
    DIGEST_HEADER,
    MODEL_HEADER,
    REPLICA_HEADER,
    VERSION_HEADER,
)
from tandem.cluster.telemetry.context import TRACEPARENT, current_ids
from tandem.serve.api.auth import Caller
from tandem.serve.api.bodies.json_body import JsonText
from tandem.serve.api.connection import while_connected
from tandem.serve.api.engine.call import EngineCall
from tandem.serve.api.engine.stream_errors import error_events
from tandem.serve.api.error_responses import as_serve_error, error_content
from tandem.serve.api.quick_reads import read_quickly
from tandem.serve.api.request_ids import request_id, unexpected_error
from tandem.serve.api.services import CompletionServices
from tandem.serve.errors import InvalidRequestError, NotFoundError, Problem, UnavailableError
from tandem.serve.names import quoted
from tandem.serve.store.policies.versions import PinnedPolicy

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?:wandb-artifact:///)?([\w.-]+)/([\w.-]+)/([\w.-]+)(?::step(0|[1-9][0-9]{0,8}))?")


async def complete(
    request: Request, path: str, body: JsonText, caller: Caller, services: CompletionServices
) -> Response:
    """Return the answer to an authenticated request, as a response that still streams if the client wants that.

    Raises the errors of pinning, DeadlineError, UnavailableError, EngineDeadError and ClientDisconnect.
    """
    name = body.value.get("model")
    if not isinstance(name, str):
        raise InvalidRequestError([Problem(("body", "model"), "must be the name of a model, like entity/project/name")])
    policy = await read_quickly(services.store, _pin, name, caller, services)
    id = request_id(request.scope)
    forwarded = [
        ("content-type", "application/json"),
        # vLLM uses it as the name of the generation, and clients may send one id twice.
        ("x-request-id", f"{id}-{random.getrandbits(32):08x}"),
        (MODEL_HEADER, quote(name)),
        (VERSION_HEADER, str(policy.step)),
        (CHARGED_HEADER, Charged("sample", caller.entity, caller.key_id, policy.model_id).header()),
    ]
    if (parent := current_ids().get(TRACEPARENT)) is not None:
        forwarded.append((TRACEPARENT, str(parent)))
    stream = services.engine.http(policy.base_model, "POST", path, forwarded, body.raw, policy.digest)
    call = EngineCall(stream, services.config.deadlines.inference_s)
    headers = {VERSION_HEADER: str(policy.step), DIGEST_HEADER: policy.digest}
    try:
        status, engine_headers, content = await while_connected(request, _answer(call))
        kept = dict(engine_headers)
        headers |= {key: kept[key] for key in ("content-type", "retry-after", REPLICA_HEADER) if key in kept}
        if content is None:
            return _EventStream(call, path, id, status, headers)
    except BaseException:
        await call.close()
        raise
    if status >= 400 and not _says_why(content):
        raise UnavailableError(
            f"The engine failed on this request with status {status} and gave no reason. Retry the request; "
            f"if that doesn't help, search the engine's log for {id}.",
            "engine_failed",
        )
    return Response(content, status, headers)


def _pin(name: str, caller: Caller, services: CompletionServices) -> PinnedPolicy:
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


async def _answer(call: EngineCall) -> tuple[int, list[tuple[str, str]], bytes | None]:
    """Return status, headers and content of an answer; None instead of the content of one that streams."""
    status, headers = await call.start()
    if any(name == "content-type" and value.startswith("text/event-stream") for name, value in headers):
        return status, headers, None
    return status, headers, await call.content()


def _says_why(content: bytes) -> bool:
    try:
        error: Any = from_json(content)
    except ValueError:
        return False
    return isinstance(error, dict) and "error" in error


class _EventStream(Response):
    """Passes on the engine's events, and closes the call when it ends, however it ends."""

    def __init__(self, call: EngineCall, path: str, id: str, status: int, headers: dict[str, str]):
        self._call, self._path, self._id = call, path, id
        self.status_code, self.background = status, None
        self.init_headers({**headers, "cache-control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send_events(send))
        leaving = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
            await self._call.close()

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        num_sent = 0
        try:
            async for events in self._call.chunks():
                num_sent += events.count(b"\n\n")
                await send({"type": "http.response.body", "body": events, "more_body": True})
        except Exception as error:
            # The status can't change any more, so the error becomes the last event.
            known = as_serve_error(error)
            if known is None:
                logger.exception("A stream of completions failed, request %s", self._id)
            content = error_content(known) if known else unexpected_error(self._id)
            last = error_events(self._path, content, num_sent)
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
