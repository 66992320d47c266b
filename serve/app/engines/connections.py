"""The API's and the proxies' way to the engine replicas: direct HTTP connections, without Ray objects."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from tandem.cluster.engine.requests.headers import DIGEST_HEADER, REPLICA_HEADER, STOPPING_HEADER, TOKEN_HEADER
from tandem.cluster.engine.server import EngineAddress
from tandem.cluster.errors import EngineDeadError, EngineLostError
from tandem.serve.api.services import Headers
from tandem.serve.app.engines import engine_directory
from tandem.serve.app.proxies.http_connection import BodyStream, ConnectionLostError, HttpConnection, open_connection

logger = logging.getLogger(__name__)
REFRESH_S = 2.0
WAIT_S = 0.25
LEAVING_S = 60.0
"""How long a replica that has withdrawn its address can be asked by its name."""
MAX_IDLE = 256
"""Connections that stay open to a replica without a request."""


class Replica:
    """The connections to one engine replica."""

    def __init__(self, address: EngineAddress):
        self.address = address
        self.num_open = 0
        self._is_closed = False
        self._idle: list[HttpConnection] = []

    async def connection(self) -> HttpConnection:
        """Return a connection without a request, and count the one that it is for. Raises OSError, and counts none."""
        self.num_open += 1  # already while it connects: others choose meanwhile
        try:
            while self._idle:
                if (connection := self._idle.pop()).is_reusable:
                    return connection
            return await open_connection(self.address.host, self.address.port)
        except BaseException:
            self.num_open -= 1
            raise

    def put_back(self, connection: HttpConnection) -> None:
        if connection.is_reusable and not self._is_closed and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the connections without a request now, and the others at the end of theirs."""
        self._is_closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()


class EngineConnections:
    """An EngineClient that sends each request to the replica with the fewest open ones.

    While a base model has no replica, its requests wait for one. Use it in one event loop.
    """

    def __init__(
        self,
        addresses: Callable[[], dict[str, list[EngineAddress]]] = engine_directory.addresses,
        withdraw: Callable[[str, EngineAddress], None] = engine_directory.withdraw,
    ):
        """`addresses` lists the replicas by base model, and `withdraw` removes one. Both may block."""
        self._addresses, self._withdraw = addresses, withdraw
        self._replicas: dict[str, dict[EngineAddress, Replica]] = {}
        self._leaving: dict[str, tuple[Replica, float]] = {}
        self._refreshed_at = -REFRESH_S
        self._refreshing: asyncio.Task[None] | None = None

    async def http(
        self,
        base_model: str,
        method: str,
        path: str,
        headers: Headers,
        body: bytes | BodyStream,
        digest: str,
        replica: str | None = None,
    ) -> AsyncGenerator[tuple[int, Headers] | bytes]:
        """Yield status and headers first, then chunks of the body. Closing the generator early aborts the generation.

        `replica` names the one to ask, also while it stops. Raises EngineDeadError, and EngineLostError without it.
        """
        while True:
            chosen, connection = await (self._connect_to(base_model, replica) if replica else self._connect(base_model))
            secret = [(DIGEST_HEADER, digest), (TOKEN_HEADER, chosen.address.token)]
            try:
                async with aclosing(connection.post(path, [*headers, *secret], body)) as items:
                    start = await anext(items)
                    assert isinstance(start, tuple)
                    answered = dict(start[1])
                    is_itself = answered.get(REPLICA_HEADER) == chosen.address.replica
                    if is_itself and STOPPING_HEADER not in answered:
                        yield start
                        async for item in items:
                            yield item
                        return
                if is_itself:
                    self._keep_for_a_while(chosen)
                await self._withdrawn(base_model, chosen)  # it stops, or another program has its port
            except ConnectionLostError as error:
                raise (EngineLostError if replica else EngineDeadError)(
                    f"The engine of {base_model} died while it answered; send the request again."
                ) from error
            finally:
                chosen.num_open -= 1
                chosen.put_back(connection)

    async def serves(self, base_model: str) -> bool:
        """Return True if the base model has a replica that takes requests."""
        if not self._replicas.get(base_model) and time.monotonic() - self._refreshed_at > WAIT_S:
            await self._refresh()
        return bool(self._replicas.get(base_model))

    async def exist(self) -> bool:
        """Return True if any base model has a replica."""
        is_reading = self._refreshing is not None and not self._refreshing.done()
        if not any(self._replicas.values()) and (is_reading or time.monotonic() - self._refreshed_at > REFRESH_S):
            await self._refresh()
        return any(self._replicas.values())

    async def _connect(self, base_model: str) -> tuple[Replica, HttpConnection]:
        """Return the least busy replica, counted as open, and a connection to it. Wait while there is none."""
        if time.monotonic() - self._refreshed_at > REFRESH_S:
            self._refresh()
        while True:
            replicas = self._replicas.get(base_model)
            while replicas:
                replica = min(replicas.values(), key=lambda replica: replica.num_open)
                try:
                    return replica, await replica.connection()
                except OSError as error:
                    logger.warning("The engine of %s at %s: %s", base_model, replica.address.host, error)
                    await self._withdrawn(base_model, replica)
            await self._refresh()
            if not self._replicas.get(base_model):
                await asyncio.sleep(WAIT_S)

    async def _connect_to(self, base_model: str, name: str) -> tuple[Replica, HttpConnection]:
        """Return a replica, counted as open, and a connection to it. Raises EngineLostError."""
        lost = f"The engine replica {name} of {base_model} isn't there any more; send the request again."
        if (replica := self._find(base_model, name)) is None and time.monotonic() - self._refreshed_at > WAIT_S:
            await self._refresh()
            replica = self._find(base_model, name)
        if replica is None:
            raise EngineLostError(lost)
        try:
            return replica, await replica.connection()
        except OSError as error:
            self._leaving.pop(name, None)
            await self._withdrawn(base_model, replica)
            raise EngineLostError(lost) from error

    def _find(self, base_model: str, name: str) -> Replica | None:
        known = self._replicas.get(base_model, {}).values()
        for replica in known:
            if replica.address.replica == name:
                return replica
        return self._leaving[name][0] if name in self._leaving else None

    def _keep_for_a_while(self, replica: Replica) -> None:
        """Keep a replica that has withdrawn its address: it may stop, and still owe samples."""
        now = time.monotonic()
        self._leaving = {name: entry for name, entry in self._leaving.items() if entry[1] > now}
        self._leaving[replica.address.replica] = Replica(replica.address), now + LEAVING_S

    async def _withdrawn(self, base_model: str, replica: Replica) -> None:
        """Forget a replica that was killed, or whose node is lost. If it still answers others, it announces itself."""
        self._replicas.get(base_model, {}).pop(replica.address, None)
        replica.close()
        await asyncio.to_thread(self._withdraw, base_model, replica.address)

    def _refresh(self) -> asyncio.Future[None]:
        """Read the addresses again, once for all who wait. Shielded: a client that leaves cancels only its own wait."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshed_at = time.monotonic()
            self._refreshing = asyncio.create_task(self._read())
        return asyncio.shield(self._refreshing)

    async def _read(self) -> None:
        try:
            found = await asyncio.to_thread(self._addresses)
        except Exception as error:  # Ray's GCS restarts
            logger.warning("The addresses of engines can't be read; the known ones stay: %s", error)
            return
        for base_model in self._replicas.keys() | found.keys():
            known, listed = self._replicas.get(base_model, {}), found.get(base_model, [])
            for address in known.keys() - set(listed):
                gone = known.pop(address)
                self._keep_for_a_while(gone)
                gone.close()
            self._replicas[base_model] = known | {
                address: Replica(address) for address in listed if address not in known
            }
