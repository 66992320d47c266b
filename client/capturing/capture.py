"""Record the exchanges of one rollout, whatever SDK or framework makes them.

A rollout belongs to a context (contextvars), so rollouts that run at the same time as tasks or threads of one process
stay apart. Requests pass through httpx or httpx2, on which the SDKs of OpenAI and Anthropic, LangChain and most
frameworks are built.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from types import ModuleType
from typing import Any, TypeVar

from tandem.client.capturing.recording import Recording, endpoint_of
from tandem.client.capturing.rollout import Rollout

Http = TypeVar("Http")
RolloutOf = Callable[[Any], Rollout | None]
"""Returns the rollout that a request of httpx or httpx2 belongs to."""

RECORDING = "tandem.recording"
"""The request extension that carries the recording of the current attempt."""

_current: ContextVar[Rollout | None] = ContextVar("tandem_rollout", default=None)


def current_rollout(_: Any = None) -> Rollout | None:
    """Return the rollout that this context records into."""
    return _current.get()


@contextmanager
def capture(patch: bool = True) -> Iterator[Rollout]:
    """Record every exchange with a model that this context makes, for one rollout.

        with capture() as rollout:
            answer = agent.run(task)             # any SDK or framework
        rollout.reward = grade(answer)
        client.train(model, [{"trajectories": [rollout, ...]}])

    Recorded are POSTs to /chat/completions, /completions, /responses and /messages, streams included, once their answer
    is whole. Captures may be nested (the innermost records) and run concurrently. `no_capture()` excludes a part.

    Args:
        patch: while any capture is open, `send` of httpx's and httpx2's clients copies what passes, so that agents
            need no change. False: nothing is patched, and only clients that `recorded` has prepared are recorded.
    """
    rollout = Rollout()
    with _patched() if patch else _unpatched(), _set(rollout):
        yield rollout


@contextmanager
def no_capture() -> Iterator[None]:
    """Record nothing inside this block, for example a judge that is the trained model itself."""
    with _set(None):
        yield


def recorded(http: Http, rollout_of: RolloutOf = current_rollout) -> Http:
    """Let an HTTP client record into the open capture of each request's context, and return it.

        openai.AsyncOpenAI(http_client=recorded(openai.DefaultAsyncHttpxClient()))

    Args:
        http: a client of httpx or httpx2, sync or async. Its event hooks are extended; nothing else changes.
        rollout_of: selects the rollout of a request. Default: that of the context.
    """
    client: Any = http
    module = _module_of(client)

    def sending(request: Any) -> None:
        _begin(request, rollout_of)

    def answered(response: Any) -> None:
        recording = response.request.extensions.get(RECORDING)
        if recording is not None and not recording.is_sending:
            recording.begin_answer(response, module)

    async def async_sending(request: Any) -> None:
        sending(request)

    async def async_answered(response: Any) -> None:
        answered(response)

    is_async = isinstance(client, module.AsyncClient)
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], async_sending if is_async else sending],
        "response": [*hooks["response"], async_answered if is_async else answered],
    }
    return http


def _module_of(client: Any) -> ModuleType:
    for module in _modules():
        if isinstance(client, module.Client | module.AsyncClient):
            return module
    raise TypeError(f"recorded() takes a client of httpx or httpx2, not {type(client).__name__}.")


@cache
def _modules() -> list[ModuleType]:
    return [importlib.import_module(name) for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]


@contextmanager
def _set(rollout: Rollout | None) -> Iterator[None]:
    before = _current.get()
    _current.set(rollout)
    try:
        yield
    finally:
        _current.set(before)  # not by a token: an async generator may be closed in another context


@contextmanager
def _unpatched() -> Iterator[None]:
    yield


def _begin(request: Any, rollout_of: RolloutOf) -> Recording | None:
    """Return a new recording of this attempt; None if it isn't recorded, or already is."""
    before = request.extensions.get(RECORDING)
    endpoint = endpoint_of(request.method, str(request.url))
    rollout = None if endpoint is None else rollout_of(request)
    if endpoint is None or rollout is None or (before is not None and before.is_sending):
        return None
    try:
        body = json.loads(request.content)
    except (ValueError, RuntimeError):  # not JSON, or a stream: httpx's RequestNotRead
        return None
    if not isinstance(body, dict):
        return None
    recording = Recording(rollout, endpoint, body)
    request.extensions = {**request.extensions, RECORDING: recording}
    return recording


class _Sending:
    """Replaces `send` of both clients of httpx and httpx2 while captures are open."""

    def __init__(self) -> None:
        self._lock, self._num_open = threading.Lock(), 0
        self._replaced: list[tuple[type, Any, Any]] = []

    def open(self) -> None:
        with self._lock:
            self._num_open += 1
            if self._num_open == 1:
                for module in _modules():
                    self._replace(module.Client, _sync_send(module))
                    self._replace(module.AsyncClient, _async_send(module))

    def close(self) -> None:
        with self._lock:
            self._num_open -= 1
            if self._num_open == 0:
                for kind, original, ours in self._replaced:
                    if kind.__dict__["send"] is ours:  # or somebody replaced it meanwhile; ours then only passes on
                        kind.send = original  # type: ignore[attr-defined]  # both clients have it
                self._replaced.clear()

    def _replace(self, kind: type, ours: Any) -> None:
        self._replaced.append((kind, kind.__dict__["send"], ours))
        kind.send = ours  # type: ignore[attr-defined]  # both clients have it


def _sync_send(module: Any) -> Any:
    original = module.Client.send

    @wraps(original)
    def send(self: Any, request: Any, **options: Any) -> Any:
        with _sent(request) as recording:
            response = original(self, request, **options)
        if recording is not None:
            recording.begin_answer(response, module)
        return response

    return send


def _async_send(module: Any) -> Any:
    original = module.AsyncClient.send

    @wraps(original)
    async def send(self: Any, request: Any, **options: Any) -> Any:
        with _sent(request) as recording:
            response = await original(self, request, **options)
        if recording is not None:
            recording.begin_answer(response, module)
        return response

    return send


@contextmanager
def _sent(request: Any) -> Iterator[Recording | None]:
    recording = _begin(request, current_rollout)
    if recording is None:
        yield None
        return
    recording.is_sending = True
    try:
        yield recording
    finally:
        recording.is_sending = False


_sending = _Sending()


@contextmanager
def _patched() -> Iterator[None]:
    _sending.open()
    try:
        yield
    finally:
        _sending.close()
