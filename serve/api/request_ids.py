"""Gives each request an id, which is in its response and in the logs."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.cluster.telemetry.context import TRACEPARENT, logged_with
from tandem.cluster.telemetry.redaction import without_keys
from tandem.cluster.telemetry.tracing import Span, span, valid_traceparent
from tandem.serve.api.error_body import error_body

logger = logging.getLogger(__name__)
ID_HEADER = b"x-request-id"
_REQUEST_ID = "tandem.request_id"
_PLAIN_ID = re.compile(rb"[!-~]{1,128}")  # ASCII that is visible


def request_id(scope: Scope) -> str:
    """Return the id of this request in the logs; clients find it in x-request-id."""
    return cast(str, scope[_REQUEST_ID])


def given_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the id that arrives with a request, or None if there is none in plain text."""
    id = dict(headers).get(ID_HEADER, b"")
    return without_keys(id.decode()) if _PLAIN_ID.fullmatch(id) else None


def chosen_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id that arrives with a request, or a new one."""
    return given_id(headers) or f"req_{random.getrandbits(128):032x}"  # not a secret, and no system call


def set_request_id(scope: Scope) -> str:
    """Choose the id of a request, and return it."""
    id = scope[_REQUEST_ID] = chosen_id(scope["headers"])
    return id


@contextmanager
def followed(scope: Scope, id: str, name: str | None = None) -> Iterator[Span]:
    """Give the lines of the block the request's id, and trace it below the span that its client names.

    `name` is that of the span; None for the method.
    """
    parent = valid_traceparent(dict(scope["headers"]).get(TRACEPARENT.encode(), b"").decode("latin-1"))
    with (
        logged_with(request_id=id, **{TRACEPARENT: parent}),
        span(name or scope["method"], is_server=True, **{"url.path": scope["path"]}) as spanned,
    ):
        yield spanned


def end_span(spanned: Span, status: int) -> None:
    """Note how a request was answered."""
    spanned.note(**{"http.response.status_code": status})
    if status >= 500:
        spanned.fail(f"status {status}")


def log_answer(scope: Scope, status: int, began: float) -> None:
    """Write the line of a request that has been answered. Reads, which pages poll, are of the level debug."""
    level = logging.DEBUG if scope["method"] in ("GET", "HEAD") else logging.INFO
    if logger.isEnabledFor(level):
        path = without_keys(scope["path"])
        logger.log(level, "%s %s: %d in %.3f s", scope["method"], path, status, time.monotonic() - began)


def unexpected_message(request_id: str) -> str:
    """Return the sentence for an unexpected error."""
    return (
        f"The service failed on this request. Its log has the cause under {request_id}; "
        "if a retry doesn't help, report the problem with that id."
    )


def unexpected_error(request_id: str) -> dict[str, Any]:
    """Return the JSON of an unexpected error."""
    return error_body(unexpected_message(request_id), "server_error", "internal_error")


class RequestIds:
    """Middleware: assigns the id, and answers an unexpected exception with it instead of a bare 500.

    An id that arrives with the request is kept: Ray Serve's proxy sets one on every request and its response.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = chosen_id(scope["headers"])
        with followed(scope, id) as spanned:
            await self._answer(scope, receive, send, id, spanned)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, id: str, spanned: Span) -> None:
        is_given, started, status, began = given_id(scope["headers"]) is not None, False, 0, time.monotonic()
        scope[_REQUEST_ID] = id

        async def send_with_id(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                if not is_given:
                    message["headers"] = [*message.get("headers", ()), (ID_HEADER, id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("%s %s failed, request %s", scope["method"], without_keys(scope["path"]), id)
            if started:
                raise  # half of the response is sent; only a closed connection can tell that it failed
            await JSONResponse(unexpected_error(id), 500)(scope, receive, send_with_id)
        if route := getattr(scope.get("route"), "path", None):  # paths have ids, which would be as many names
            spanned.rename(f"{scope['method']} {route}")
        end_span(spanned, status)
        log_answer(scope, status, began)
