"""Retries: which requests are repeated, after which failures, for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import tenacity

from tandem.client.errors import retry_after_s, sentence
from tandem.client.proxies import asked

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
SAFE = "tandem.safe"
"""The request extension that marks a request as safe to repeat."""


class Retries:
    """Repeat a safe request for up to `limit_s` while the service is unreachable, busy or restarting.

    Pauses grow from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S` with random jitter, and are at least the service's
    Retry-After. A pause that would exceed the limit isn't started.
    """

    FIRST_PAUSE_S = 0.5
    LONGEST_PAUSE_S = 10.0
    OBEYS_SHOULD_RETRY = True
    """Never repeat a request whose answer has the header x-should-retry: false, as after a generation's deadline."""

    def __init__(self, limit_s: float = 60.0):
        self.limit_s = limit_s
        self.stop: tenacity.stop.stop_base = tenacity.stop_before_delay(limit_s)

    def may_pass(self, response: httpx.Response) -> bool:
        """Return True if the same request may succeed later."""
        if self.OBEYS_SHOULD_RETRY and response.headers.get("x-should-retry") == "false":
            return False
        # Serve's proxy, just started, knows no routes and answers 404 in plain text; the service answers in JSON.
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.status_code in RETRIED_STATUSES or (response.status_code == 404 and not is_json)

    def failed(self, request: httpx.Request, cause: str) -> None:
        """Handle a failed attempt. An exception raised here ends the retries."""

    def answered(self, request: httpx.Request) -> None:
        """Handle an answer that ends the retries of its request."""

    def longest_pause_s(self) -> float:
        """Return the longest pause, whatever Retry-After says."""
        return float("inf")

    def options(self, request: httpx.Request) -> dict[str, Any]:
        """Return the arguments of `tenacity.Retrying` for a request."""
        jitter = tenacity.wait_random_exponential(
            multiplier=self.FIRST_PAUSE_S, max=self.LONGEST_PAUSE_S, min=self.FIRST_PAUSE_S / 2
        )

        def pause_s(state: tenacity.RetryCallState) -> float:
            outcome = state.outcome
            asked_s = 0.0 if outcome is None or outcome.failed else retry_after_s(outcome.result()) or 0.0
            return min(max(asked_s, jitter(state)), self.longest_pause_s())

        return {
            "retry": tenacity.retry_if_exception(_may_pass) | tenacity.retry_if_result(self.may_pass),
            "stop": self.stop,
            "wait": pause_s,
            "after": lambda state: self.failed(request, _cause(request, state)),
            "retry_error_callback": lambda state: state.outcome.result(),
        }


class RetryingClient(httpx.Client):
    """An `httpx.Client` that repeats requests while they are safe to repeat."""

    def __init__(self, retries: Retries, is_safe: Callable[[httpx.Request], bool], **options: Any):
        super().__init__(**options)
        self._retries, self._is_safe = retries, is_safe

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        if not self._is_safe(request):
            return super().send(request, **options)
        return tenacity.Retrying(**self._retries.options(request))(self._attempt, request, **options)

    def _attempt(self, request: httpx.Request, **options: Any) -> httpx.Response:
        response = super().send(request, **options)
        if self._retries.may_pass(response):
            response.read()
        else:
            self._retries.answered(request)
        return response


class AsyncRetryingClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` that repeats requests while they are safe to repeat."""

    def __init__(self, retries: Retries, is_safe: Callable[[httpx.Request], bool], **options: Any):
        super().__init__(**options)
        self._retries, self._is_safe = retries, is_safe

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        if not self._is_safe(request):
            return await super().send(request, **options)
        return await tenacity.AsyncRetrying(**self._retries.options(request))(self._attempt, request, **options)

    async def _attempt(self, request: httpx.Request, **options: Any) -> httpx.Response:
        response = await super().send(request, **options)
        if self._retries.may_pass(response):
            await response.aread()
        else:
            self._retries.answered(request)
        return response


def is_safe(request: httpx.Request) -> bool:
    """Return True if the request can be repeated without a second effect."""
    return request.method == "GET" or bool(request.extensions.get(SAFE))


def _may_pass(error: BaseException) -> bool:
    is_ours = isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
    return isinstance(error, httpx.TransportError) and not is_ours


def _cause(request: httpx.Request, state: tenacity.RetryCallState) -> str:
    assert state.outcome is not None
    if error := state.outcome.exception():
        return f"{type(error).__name__}: {error}".removesuffix(": ") + asked(request.url)
    response: httpx.Response = state.outcome.result()
    return f"{response.status_code}: {' '.join(sentence(response).split())[:300]}"
