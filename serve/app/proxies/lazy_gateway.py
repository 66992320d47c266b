"""Loads the gateways of a proxy after the proxy's start: Serve ends one that takes too long to start on a busy machine.

Importing this module imports neither the gateways nor what they need, which takes half a second.
"""

from __future__ import annotations

import asyncio
import importlib
import logging

from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)
_GATEWAY = "tandem.serve.app.proxies.inference_gateway"
_API_GATEWAY = "tandem.serve.app.proxies.api_gateway"


class LazyGateway:
    """Middleware of a proxy: passes requests to the API until the gateway is loaded, which the first one begins."""

    def __init__(self, app: ASGIApp):
        self._app = self._next = app
        self._loading: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._loading is None and scope["type"] == "http":
            self._loading = asyncio.create_task(self._load())
        await self._next(scope, receive, send)

    async def _load(self) -> None:
        try:
            api = await asyncio.to_thread(importlib.import_module, _API_GATEWAY)
            inference = await asyncio.to_thread(importlib.import_module, _GATEWAY)
            self._next = inference.InferenceGateway(api.ApiGateway(self._app))
        except Exception:
            logger.exception("This proxy passes all requests on in Serve's own way")
