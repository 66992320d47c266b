"""The client for code that runs on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, closing
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from tandem.client import adapters, calls
from tandem.client.capturing.capture import capture
from tandem.client.connection import Connection, documented
from tandem.client.flows import Call, Flow, Item, Pause
from tandem.client.retries import AsyncRetryingClient, Retries, is_safe

if TYPE_CHECKING:
    from openai import AsyncOpenAI

P = ParamSpec("P")
T = TypeVar("T")


def _call(operation: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """Make the method that performs a call and returns its result."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._send(operation(*args, **kwargs))

    return documented(method, operation, "{}")


def _iterator(operation: Callable[P, Flow[T]]) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]:
    """Make the method that iterates over the items of a flow."""

    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._items(operation(*args, **kwargs))

    return documented(method, operation, "AsyncIterator[{}]")


def _result(operation: Callable[P, Flow[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """Make the method that returns the only item of a flow."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        async with aclosing(self._items(operation(*args, **kwargs))) as items:
            return await anext(items)

    return documented(method, operation, "{}")


class AsyncClient:
    """A client of a Tandem service, like `Client`, with methods to be awaited or iterated over.

    async with AsyncClient() as client:
        model = await client.register_model("agent", project="demo", base_model="tandem/tiny")
        job = await client.train(model, groups, learning_rate=1e-3)
        async for event in client.events(job):
            print(event.type, event.data)
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = 120.0,
        retries: Retries | float = 60.0,
    ):
        """Take the arguments of `Client`."""
        self._connection = Connection(url, key, timeout_s, retries)
        self._exits = AsyncExitStack()
        self._http = self._new_http(is_safe)

    @property
    def url(self) -> str:
        return self._connection.url

    register_model = _call(calls.register_model)
    get_model = _call(calls.get_model)
    models = _iterator(calls.models)
    delete_model = _call(calls.delete_model)
    versions = _call(calls.versions)
    wait_for_version = _result(calls.wait_for_version)
    checkpoints = _iterator(calls.checkpoints)
    delete_checkpoints = _call(calls.delete_checkpoints)
    fork_model = _result(adapters.fork_model)
    download_adapter = _result(adapters.download_adapter)
    import_adapter = _result(adapters.import_adapter)

    train = _call(calls.train)
    post_job = _call(calls.post_job)
    train_sft = _call(calls.train_sft)
    create_dataset = _call(calls.create_dataset)
    get_dataset = _call(calls.get_dataset)
    datasets = _iterator(calls.datasets)
    delete_dataset = _call(calls.delete_dataset)
    get_job = _call(calls.get_job)
    jobs = _iterator(calls.jobs)
    cancel_job = _call(calls.cancel_job)
    wait = _result(calls.wait)
    events = _iterator(calls.events)
    new_events = _call(calls.new_events)
    artifacts = _iterator(calls.artifacts)
    download_artifact = _call(calls.download_artifact)

    keys = _iterator(calls.keys)
    create_key = _call(calls.create_key)
    revoke_key = _call(calls.revoke_key)
    usage = _call(calls.usage)
    usage_csv = _call(calls.usage_csv)
    health = _call(calls.health)

    capture = staticmethod(capture)

    def openai(self, **options: Any) -> AsyncOpenAI:
        """Return an OpenAI client of this service, which retries as this client does and is closed with it.

        `options` are further arguments of `openai.AsyncOpenAI`, like timeout.
        """
        from openai import AsyncOpenAI

        http = self._new_http(lambda request: True)  # completions change nothing
        return AsyncOpenAI(http_client=http, **self._connection.openai_options(options))

    async def close(self) -> None:
        await self._exits.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _new_http(self, is_safe: Callable[[httpx.Request], bool]) -> AsyncRetryingClient:
        http = AsyncRetryingClient(self._connection.retries, is_safe, **self._connection.http_options())
        self._exits.push_async_callback(http.aclose)
        return http

    async def _send(self, call: Call[T]) -> T:
        try:
            response = await self._http.send(self._connection.request(call, self._http))
        except httpx.TransportError as error:
            raise self._connection.no_answer(call, error) from error
        return self._connection.result(call, response)

    async def _items(self, flow: Flow[T]) -> AsyncGenerator[T]:
        with closing(flow):  # which removes its files if a request fails
            answer: Any = None
            while True:
                try:
                    step = flow.send(answer)
                except StopIteration:
                    return
                answer = None
                match step:
                    case Call():
                        answer = await self._send(step)
                    case Pause():
                        await asyncio.sleep(step.seconds)
                    case Item():
                        yield step.value
