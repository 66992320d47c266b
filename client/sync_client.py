"""The client for ordinary code."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from tandem.client import adapters, calls
from tandem.client.capturing.capture import capture
from tandem.client.connection import Connection, documented
from tandem.client.flows import Call, Flow, Item, Pause
from tandem.client.retries import Retries, RetryingClient, is_safe

if TYPE_CHECKING:
    from openai import OpenAI

P = ParamSpec("P")
T = TypeVar("T")


def _call(operation: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """Make the method that performs a call and returns its result."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._send(operation(*args, **kwargs))

    return documented(method, operation, "{}")


def _iterator(operation: Callable[P, Flow[T]]) -> Callable[Concatenate[Client, P], Iterator[T]]:
    """Make the method that iterates over the items of a flow."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._items(operation(*args, **kwargs))

    return documented(method, operation, "Iterator[{}]")


def _result(operation: Callable[P, Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    """Make the method that returns the only item of a flow."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with closing(self._items(operation(*args, **kwargs))) as items:
            return next(items)

    return documented(method, operation, "{}")


class Client:
    """A client of a Tandem service.

        with Client() as client:
            model = client.register_model("agent", project="demo", base_model="tandem/tiny")
            job = client.train(model, groups, learning_rate=1e-3)
            print(client.wait(job).step)

    Models and jobs are passed as objects or by their ids. Every method may raise a TandemError: StatusError and its
    subclasses if the service rejects the request, NoAnswerError if it can't be reached. It may be used by many threads.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = 120.0,
        retries: Retries | float = 60.0,
    ):
        """
        Args:
            url: default: the environment variable TANDEM_URL, else http://127.0.0.1:8000.
            key: an API key; default: TANDEM_API_KEY.
            timeout_s: the longest silence of the service within one attempt.
            retries: for how many seconds a request that is safe to repeat is retried; 0: never.
        """
        self._connection = Connection(url, key, timeout_s, retries)
        self._exits = ExitStack()
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

    def openai(self, **options: Any) -> OpenAI:
        """Return an OpenAI client of this service, which retries as this client does and is closed with it.

        `options` are further arguments of `openai.OpenAI`, like timeout.
        """
        from openai import OpenAI

        http = self._new_http(lambda request: True)  # completions change nothing
        return OpenAI(http_client=http, **self._connection.openai_options(options))

    def close(self) -> None:
        self._exits.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _new_http(self, is_safe: Callable[[httpx.Request], bool]) -> RetryingClient:
        http = RetryingClient(self._connection.retries, is_safe, **self._connection.http_options())
        self._exits.callback(http.close)
        return http

    def _send(self, call: Call[T]) -> T:
        try:
            response = self._http.send(self._connection.request(call, self._http))
        except httpx.TransportError as error:
            raise self._connection.no_answer(call, error) from error
        return self._connection.result(call, response)

    def _items(self, flow: Flow[T]) -> Generator[T]:
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
                        answer = self._send(step)
                    case Pause():
                        time.sleep(step.seconds)
                    case Item():
                        yield step.value
