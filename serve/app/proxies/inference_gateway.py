"""Completions and samples answered by the proxy itself: it pins the version, and passes the bytes on to an engine.

Without it, they would travel as Ray objects through a replica of the API and back, and each held request for the
result of a sample would take one of the API's places. Authentication, pinning and
errors are those of the API's routes, which still answer where a proxy has no gateway or no configuration yet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tandem.cluster.config import TandemConfig
from tandem.cluster.engine.requests.protocols import PATHS
from tandem.cluster.telemetry.setup import Telemetry
from tandem.serve.api.auth import Caller, bearer_key, sender
from tandem.serve.api.bodies.json_body import JsonText, receive_object
from tandem.serve.api.engine.completion import complete
from tandem.serve.api.error_responses import error_response
from tandem.serve.api.quick_reads import read_quickly
from tandem.serve.api.request_ids import ID_HEADER, end_span, followed, log_answer, set_request_id
from tandem.serve.app.engines import engine_directory
from tandem.serve.app.engines.connections import EngineConnections
from tandem.serve.observing.http_metrics import RequestMeter
from tandem.serve.store.store import Store
from tandem.serve.tinker.sampling.known_samplers import KnownSamplers
from tandem.serve.tinker.sampling.sample_routes import ASAMPLE, RETRIEVE, ReadAhead, fetch_sample, start_sample
from tandem.serve.tinker.sampling.sampling import Sampling
from tandem.serve.tinker.store.samplers import Samplers

logger = logging.getLogger(__name__)
REFRESH_S = 2.0


@dataclass(frozen=True)
class _Configured:
    """The services of a published configuration."""

    text: str
    config: TandemConfig
    store: Store
    engine: EngineConnections
    base_models: Collection[str]
    sampling: Sampling


Respond = Callable[[Request, Caller, JsonText, _Configured], Coroutine[Any, Any, Response]]


class InferenceGateway:
    """Middleware of a proxy: answers POSTs of completions and samples, and leaves all else to the application."""

    def __init__(self, app: ASGIApp, published: Callable[[], str | None] = engine_directory.published_config):
        """`published` returns the service's configuration as JSON, None while there is none; it may block."""
        self._app, self._published = app, published
        self._configured: _Configured | None = None
        self._connections = EngineConnections()
        self._responses: dict[str, Respond] = dict.fromkeys(PATHS, _complete)
        self._responses |= {ASAMPLE: _start_sample, RETRIEVE: _fetch_sample}
        self._refreshed_at = -REFRESH_S
        self._refreshing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        respond = self._responses.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if respond is not None:
            services = await self._services()
            # Without engines, Serve knows whether the application exists.
            is_own = services is not None and await self._connections.exist()
            if is_own and scope["path"] == RETRIEVE:
                ahead = ReadAhead(receive)
                is_own, receive = await ahead.is_of_a_sample(), ahead.receive
            if services is not None and is_own:
                meter = RequestMeter(scope, send, "gateway")
                try:
                    await self._answer(services, scope, receive, meter.send, respond)
                except Exception:
                    meter.failed()
                    raise
                finally:
                    meter.end(scope["path"])
                return
        await self._app(scope, receive, send)

    async def _answer(
        self, services: _Configured, scope: Scope, receive: Receive, send: Send, respond: Respond
    ) -> None:
        id, began = set_request_id(scope), time.monotonic()
        with followed(scope, id, f"POST {scope['path']}") as spanned:
            response = await self._response(services, Request(scope, receive), respond)
            if response is None:
                return
            end_span(spanned, response.status_code)
            response.headers[ID_HEADER.decode()] = id
            await response(scope, receive, send)
            log_answer(scope, response.status_code, began)

    async def _response(self, services: _Configured, request: Request, respond: Respond) -> Response | None:
        """Return the answer; None if the client has left."""
        try:
            caller = await read_quickly(services.store, sender, request, services.store, bearer_key(request))
            body = await receive_object(request, services.config)
            return await respond(request, caller, body, services)
        except ClientDisconnect:
            return None
        except Exception as error:
            answer = error_response(request, error)
            if answer is None:
                raise
            return answer

    async def _services(self) -> _Configured | None:
        """Return the services, once for all requests of the next seconds. The first request waits for them."""
        if time.monotonic() - self._refreshed_at > REFRESH_S and (self._refreshing is None or self._refreshing.done()):
            self._refreshed_at = time.monotonic()
            self._refreshing = asyncio.create_task(self._refresh())
        if self._configured is None and self._refreshing is not None:
            await asyncio.shield(self._refreshing)
        return self._configured

    async def _refresh(self) -> None:
        try:
            text = await asyncio.to_thread(self._published)
            if text is None or (self._configured and self._configured.text == text):
                return
            self._configured = await asyncio.to_thread(self._configure, text)
        except Exception:
            logger.exception("The proxy can't read the service's configuration; the API answers completions meanwhile")

    def _configure(self, text: str) -> _Configured:
        config = TandemConfig.model_validate_json(text)
        Telemetry.of(config).set_up("gateway")
        names = [base.name for base in config.base_models]
        store = Store(config.resolved_store_url)
        sampling = Sampling(
            self._connections, KnownSamplers(store, Samplers(store.database)), config.tinker, frozenset(names)
        )
        return _Configured(text, config, store, self._connections, names, sampling)


async def _complete(request: Request, caller: Caller, body: JsonText, services: _Configured) -> Response:
    return await complete(request, request.scope["path"], body, caller, services)


async def _start_sample(request: Request, caller: Caller, body: JsonText, services: _Configured) -> Response:
    return await start_sample(request, caller, body, services.sampling)


async def _fetch_sample(request: Request, caller: Caller, body: JsonText, services: _Configured) -> Response:
    return await fetch_sample(request, caller, body.value, services.sampling)
