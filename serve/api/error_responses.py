"""The one place that turns errors into HTTP.

Every error has the same shape: `error` for people and OpenAI clients, and for faults in a request also `detail`, as
FastAPI writes it. No response quotes what the client sent beyond names.
"""

from __future__ import annotations

import logging
import re
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.cluster.errors import AdapterUnavailableError, EngineDeadError
from tandem.serve.api.redaction import without_keys
from tandem.serve.api.validation import faults_of
from tandem.serve.errors import (
    AuthenticationError,
    ConflictError,
    DeadlineError,
    Fault,
    ForbiddenError,
    InvalidRequestError,
    NoAnswerError,
    NotFoundError,
    QueueFullError,
    ServeError,
    StalledError,
    StorageFullError,
    TooLargeError,
    UnavailableError,
    UnsupportedCodingError,
)
from tandem.serve.ingest.content_coding import CODINGS

logger = logging.getLogger(__name__)
_REQUEST_ID = "tandem.request_id"
_PLAIN_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")

_STATUS: dict[type[ServeError], tuple[int, str, dict[str, str]]] = {
    AuthenticationError: (401, "authentication_error", {"WWW-Authenticate": "Bearer"}),
    ForbiddenError: (403, "permission_error", {}),
    NotFoundError: (404, "not_found_error", {}),
    StalledError: (408, "timeout_error", {"Connection": "close"}),
    ConflictError: (409, "conflict_error", {}),
    TooLargeError: (413, "invalid_request_error", {}),
    UnsupportedCodingError: (415, "invalid_request_error", {"Accept-Encoding": ", ".join(CODINGS)}),
    InvalidRequestError: (422, "invalid_request_error", {}),
    QueueFullError: (429, "rate_limit_error", {"Retry-After": "10"}),
    UnavailableError: (503, "service_unavailable_error", {"Retry-After": "1"}),
    NoAnswerError: (503, "service_unavailable_error", {"Retry-After": "1"}),
    # OpenAI clients would otherwise send again what has just proved too long.
    DeadlineError: (504, "timeout_error", {"x-should-retry": "false"}),
    StorageFullError: (507, "insufficient_storage_error", {"x-should-retry": "false"}),
}


def error_body(
    message: str, type: str, code: str | None, param: str | None = None, faults: tuple[Fault, ...] = ()
) -> dict[str, Any]:
    """The JSON of an error, in the shape that OpenAI clients read."""
    shown = None if param is None else without_keys(param)
    body: dict[str, Any] = {"error": {"message": without_keys(message), "type": type, "code": code, "param": shown}}
    if faults:
        body["detail"] = [
            {
                "loc": [without_keys(part) if isinstance(part, str) else part for part in fault.loc],
                "msg": without_keys(fault.msg),
                "type": fault.type,
            }
            for fault in faults
        ]
    return body


def status_of(error: ServeError) -> tuple[int, dict[str, str]]:
    """The HTTP status of one of the service's own errors, and headers that go with it."""
    status, _, headers = _STATUS[type(error)]
    return status, headers


def error_content(error: ServeError) -> dict[str, Any]:
    """The JSON of one of the service's own errors."""
    faults = error.faults if isinstance(error, InvalidRequestError) else ()
    return error_body(error.message, _STATUS[type(error)][1], error.code, error.param, faults)


def as_serve_error(error: Exception) -> ServeError | None:
    """What the service says about errors from the parts it is made of; None for those that nobody expected."""
    match error:
        case ServeError():
            return error
        case RequestValidationError():
            return InvalidRequestError(faults_of(error.errors()))
        case EngineDeadError() | AdapterUnavailableError():
            return UnavailableError(str(error), "engine_unavailable")
        case _:
            return None


def install(app: FastAPI) -> None:
    """Makes the application answer every error in the one shape."""
    for kind in (ServeError, RequestValidationError, EngineDeadError, AdapterUnavailableError):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_middleware(RequestIds)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    known = as_serve_error(error)
    assert known is not None
    status, _, headers = _STATUS[type(known)]
    if status >= 500:
        path = without_keys(request.url.path)
        logger.warning("%s %s, request %s: %s", request.method, path, request_id(request.scope), error)
    return JSONResponse(error_content(known), status, headers)


async def answer_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    """Errors of the router: no such path, or not with this method."""
    body = error_body(http_exception_message(request, error), "invalid_request_error", "route")
    return JSONResponse(body, error.status_code, error.headers)


def http_exception_message(request: Request, error: HTTPException) -> str:
    return {
        404: f"There is no {request.url.path} here. /docs lists the routes.",
        405: f"{request.url.path} doesn't take {request.method}. /docs lists the routes.",
    }.get(error.status_code, str(error.detail))


async def _answer_nobody(request: Request, error: ClientDisconnect) -> Response:
    """The client hung up: no fault of the service, and nobody reads this."""
    return Response(status_code=499)


def request_id(scope: Scope) -> str:
    """The id under which the logs know this request; clients find it in x-request-id."""
    return scope[_REQUEST_ID]


def unexpected_message(request_id: str) -> str:
    """The sentence of an error that nobody expected."""
    return (
        f"The service failed on this request. Its log has the cause under {request_id}; "
        "if sending the request again doesn't help, report it with that id."
    )


def unexpected_error(request_id: str) -> dict[str, Any]:
    """The JSON of an error that nobody expected."""
    return error_body(unexpected_message(request_id), "server_error", "internal_error")


class RequestIds:
    """Middleware: gives each request an id, and answers an unexpected exception with it instead of a bare 500.

    An id that comes with the request is used: Ray Serve's proxy puts one on every request, and on its response.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        is_given, started = _PLAIN_ID.fullmatch(given) is not None, False
        id = scope[_REQUEST_ID] = given if is_given else f"req_{uuid.uuid4().hex}"

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if not is_given:
                    message["headers"] = [*message.get("headers", ()), (b"x-request-id", id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("%s %s failed, request %s", scope["method"], without_keys(scope["path"]), id)
            if started:
                raise  # half an answer is out; closing the connection is all that says so
            await JSONResponse(unexpected_error(id), 500)(scope, receive, send_with_id)
