"""An engine actor with its HTTP server, and a client of it for tests that aren't asynchronous."""

from __future__ import annotations

import http.client
import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import ray

from tandem.cluster.engine.engine import Engine, engine_environment
from tandem.cluster.engine.metrics.usage import Charged, UsageBatch
from tandem.cluster.engine.requests.headers import (
    CHARGED_HEADER,
    DIGEST_HEADER,
    MODEL_HEADER,
    TOKEN_HEADER,
    VERSION_HEADER,
)
from tandem.cluster.engine.server import EngineAddress, EngineServer

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors don't find the modules of tests

CHAT = "/v1/chat/completions"
STEP, REQUESTED = 3, "team/project/agent"


class ServedEngine(Engine):
    """Starts as a replica of the service does."""

    async def listen(self) -> EngineAddress:
        self._server = EngineServer(self.completions, "replica-1", samples=self.samples)
        return await self._server.start("127.0.0.1")

    async def lease_sleep(self, holder: str, lease_s: float) -> None:
        await self.sleep.lease(holder, lease_s)

    async def take_usage(self, acknowledged: int) -> tuple[list[UsageBatch], float]:
        return self.usage.take(acknowledged), self.usage.busy_s

    async def release_sleep(self, holder: str) -> None:
        await self.sleep.release(holder)


def start_engine(model, concurrency: int, *arguments: Any, **options: Any) -> tuple[Any, EngineAddress]:
    """Start an engine as an actor. Return it and its address."""
    environment = {"env_vars": engine_environment("cpu", str(model))}
    actor = ray.remote(num_cpus=1, max_concurrency=concurrency, runtime_env=environment)(ServedEngine).remote(
        *arguments, **options
    )
    ray.get(actor.start.remote())
    return actor, ray.get(actor.listen.remote())


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Asked:
    """A request that is on its way."""

    def __init__(self, address: EngineAddress, path: str, headers: dict[str, str], body: bytes):
        self._connection = http.client.HTTPConnection(address.host, address.port, timeout=600)
        self._connection.request("POST", path, body, headers)
        self._response: http.client.HTTPResponse | None = None

    @property
    def response(self) -> http.client.HTTPResponse:
        """Wait for status and headers."""
        self._response = self._response or self._connection.getresponse()
        return self._response

    def cancel(self) -> None:
        """Disconnect."""
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def finish(self) -> Answer:
        response = self.response
        headers = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, headers, response.read())
        self._connection.close()
        return answer


def ask(address: EngineAddress, digest: str, body: Any, path: str = CHAT, charged: Charged | None = None) -> Asked:
    """Send a request under a policy version, and return at once."""
    headers = {
        "content-type": "application/json",
        TOKEN_HEADER: address.token,
        DIGEST_HEADER: digest,
        VERSION_HEADER: str(STEP),
        MODEL_HEADER: REQUESTED,
    }
    if charged is not None:
        headers[CHARGED_HEADER] = charged.header()
    return Asked(address, path, headers, body if isinstance(body, bytes) else json.dumps(body).encode())


def status_of(asked: Asked) -> Future[int]:
    """Return a future of the status, which a thread waits for."""
    return ThreadPoolExecutor(1).submit(lambda: asked.response.status)


def core_of(actor: Any) -> psutil.Process:
    """Return the process of the engine's core."""
    pid = ray.get(actor.__ray_call__.remote(lambda engine: os.getpid()))
    return next(p for p in psutil.Process(pid).children(recursive=True) if "EngineCore" in p.name())
