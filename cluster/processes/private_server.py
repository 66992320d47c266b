"""An HTTP server in the event loop of its process, for other processes of the service alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

KEEP_ALIVE_S = 3600  # clients close connections: a server that does may cross a request on its way
POLL_S = 0.05
App = Callable[[Any, Any, Any], Awaitable[None]]


class PrivateServer:
    """Serves an ASGI application on a free port. The application checks who asks.

    server = PrivateServer(app)
    port = await server.start(host)
    await server.stop()
    """

    def __init__(self, app: App):
        self._app = app
        self._server: _Server
        self._serving: asyncio.Task[None]

    async def start(self, host: str) -> int:
        """Listen on a free port of the address, and return it once requests are taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family, backlog=2048)
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_S,
            date_header=False,
            server_header=False,
            ws="none",
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(POLL_S)
        if self._serving.done():
            self._serving.result()
        port: int = listener.getsockname()[1]
        return port

    @property
    def num_connections(self) -> int:
        return len(self._server.server_state.connections)

    async def stop(self) -> None:
        """Close all connections."""
        self._server.should_exit = self._server.force_exit = True
        await self._serving


class _Server(uvicorn.Server):
    """Leaves signals to the process that it runs in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
