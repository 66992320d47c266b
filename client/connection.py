"""The parts that both clients share: settings, requests, results, and the signatures of methods."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx

from tandem.client.address import api_key, service_url
from tandem.client.errors import NoAnswerError, TandemError, UnexpectedAnswerError, status_error
from tandem.client.flows import Call
from tandem.client.proxies import asked, http_options
from tandem.client.retries import SAFE, Retries

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])
DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_S = 30.0


class Connection:
    """Address and settings of the service. Builds requests and reads responses."""

    def __init__(self, url: str | None, key: str | None, timeout_s: float, retries: Retries | float):
        self.url = service_url(url or os.environ.get("TANDEM_URL") or DEFAULT_URL)
        self.key = api_key(key or os.environ.get("TANDEM_API_KEY") or "")
        self._route = http_options(self.url)
        self.timeout_s = timeout_s
        self.retries = retries if isinstance(retries, Retries) else Retries(retries)

    def http_options(self) -> dict[str, Any]:
        # No limit on connections: the caller decides how many rollouts run at the same time.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        return {"base_url": self.url, "timeout": _timeout(self.timeout_s), "limits": limits, **self._route}

    def openai_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of an OpenAI client. Retries are off, because the HTTP client below it retries."""
        timeout = options.get("timeout", self.timeout_s)
        own = {"base_url": f"{self.url}/v1", "api_key": self.key, "max_retries": 0}
        return {**own, **options, "timeout": _timeout(timeout) if isinstance(timeout, int | float) else timeout}

    def request(self, call: Call[Any], http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        return http.build_request(
            call.method,
            call.path,
            params=call.params,
            json=call.json,
            content=call.content,
            headers={"Authorization": f"Bearer {self.key}", **call.headers},
            extensions={SAFE: call.is_safe},
        )

    def no_answer(self, call: Call[Any], error: httpx.TransportError) -> TandemError:
        cause = f"{type(error).__name__}: {error}".removesuffix(": ")
        request = f"{call.method} {call.path}"
        return NoAnswerError(
            f"No answer from {self.url} to {request} ({cause}){asked(self.url)}. Is the service running?"
        )

    def result(self, call: Call[T], response: httpx.Response) -> T:
        """Return the result in an answer. Raise StatusError or UnexpectedAnswerError."""
        if not response.is_success and response.status_code not in call.accepts:
            raise status_error(response, asked(self.url))
        try:
            if call.takes_response:
                return call.parse(response)
            return call.parse(response.json() if call.is_json else response.content)
        except (ValueError, KeyError, TypeError) as error:
            raise UnexpectedAnswerError(
                f"{self.url} answered {call.method} {call.path} with {response.text[:200]!r}, "
                f"which isn't Tandem's answer ({error!r}){asked(self.url)}. Check the URL."
            ) from error


def _timeout(silence_s: float) -> httpx.Timeout:
    return httpx.Timeout(silence_s, connect=min(CONNECT_S, silence_s), pool=None)


def documented(method: Method, operation: Callable[..., Any], result: str) -> Method:
    """Give a client's method the name, docstring and signature of the operation that it performs.

    `result` is the annotation of its result, with {} for the type in the operation's own annotation.
    """
    signature = inspect.signature(operation)
    of = str(signature.return_annotation).partition("[")[2].removesuffix("]")
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = signature.replace(
        parameters=[itself, *signature.parameters.values()], return_annotation=result.format(of)
    )
    method.__name__ = operation.__name__
    method.__doc__ = operation.__doc__
    method.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it from any function
    return method
