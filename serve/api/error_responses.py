"""The one place that turns errors into HTTP responses.

Every error has the same shape (`error_body`). No response quotes anything of the request but names.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tandem.cluster.errors import AdapterUnavailableError, EngineDeadError, StageError
from tandem.cluster.payloads.reading import PayloadError
from tandem.cluster.telemetry.redaction import without_keys
from tandem.rl.errors import AdapterError, ConfigError, LoraLimitError, TrajectoryError
from tandem.serve.api.anthropic_errors import AnthropicErrors
from tandem.serve.api.bodies.problems import problems_of
from tandem.serve.api.error_body import error_body
from tandem.serve.api.request_ids import RequestIds, request_id
from tandem.serve.api.wire.paging import unknown_cursor
from tandem.serve.errors import (
    AuthenticationError,
    BadRequestError,
    ConflictError,
    DeadlineError,
    ForbiddenError,
    GoneError,
    InvalidRequestError,
    NoAnswerError,
    NotFoundError,
    Problem,
    QueueFullError,
    ServeError,
    StalledError,
    StorageFullError,
    TooLargeError,
    TooManyStreamsError,
    UnavailableError,
    UnsupportedCodingError,
)
from tandem.serve.ingest.content_coding import CODINGS
from tandem.serve.store.database import UnknownCursorError

logger = logging.getLogger(__name__)

_STATUS: dict[type[ServeError], tuple[int, str, dict[str, str]]] = {
    BadRequestError: (400, "invalid_request_error", {}),
    AuthenticationError: (401, "authentication_error", {"WWW-Authenticate": "Bearer"}),
    ForbiddenError: (403, "permission_error", {}),
    NotFoundError: (404, "not_found_error", {}),
    StalledError: (408, "timeout_error", {"Connection": "close"}),
    ConflictError: (409, "conflict_error", {}),
    GoneError: (410, "not_found_error", {}),
    TooLargeError: (413, "invalid_request_error", {}),
    UnsupportedCodingError: (415, "invalid_request_error", {"Accept-Encoding": ", ".join(CODINGS)}),
    InvalidRequestError: (422, "invalid_request_error", {}),
    QueueFullError: (429, "rate_limit_error", {"Retry-After": "10"}),
    TooManyStreamsError: (429, "rate_limit_error", {"Retry-After": "10"}),
    UnavailableError: (503, "service_unavailable_error", {"Retry-After": "1"}),
    NoAnswerError: (503, "service_unavailable_error", {"Retry-After": "1"}),
    # OpenAI clients would otherwise retry a request that has just proved too long.
    DeadlineError: (504, "timeout_error", {"x-should-retry": "false"}),
    StorageFullError: (507, "insufficient_storage_error", {"x-should-retry": "false"}),
}
_FROM_BELOW = (
    AdapterError,
    AdapterUnavailableError,
    ConfigError,
    EngineDeadError,
    LoraLimitError,
    PayloadError,
    StageError,
    TrajectoryError,
    UnknownCursorError,
)
"""Errors of the layers below that are an answer to the request. Any other is unexpected."""


def status_of(error: ServeError) -> tuple[int, dict[str, str]]:
    """Return the HTTP status of one of the service's own errors, and its headers."""
    status, _, headers = _STATUS[type(error)]
    return status, headers


def error_content(error: ServeError) -> dict[str, Any]:
    """Return the JSON of one of the service's own errors."""
    problems = error.problems if isinstance(error, InvalidRequestError) else ()
    return error_body(error.message, _STATUS[type(error)][1], error.code, error.param, problems)


def as_serve_error(error: Exception) -> ServeError | None:
    """Return an error of the layers below, or of FastAPI, as the service's own; None for an unexpected one."""
    match error:
        case ServeError():
            return error
        case RequestValidationError():
            return InvalidRequestError(problems_of(error.errors()))
        case UnknownCursorError():
            return unknown_cursor()
        case ConfigError():
            problem = Problem(("body", "experimental_config", error.field), error.reason)
            return InvalidRequestError([problem], "invalid_training_config")
        case AdapterError():
            place = ("body", error.file, error.field) if error.field else ("body", error.file)
            return InvalidRequestError([Problem(place, error.reason)], "invalid_adapter")
        case LoraLimitError():
            return InvalidRequestError([Problem(("body", "lora", error.field), error.reason)], "lora_not_allowed")
        case TrajectoryError():
            return InvalidRequestError([Problem(("body", *error.location), error.reason)], "invalid_trajectory")
        case PayloadError():
            return InvalidRequestError(problems_of(error.faults, ("body",)))
        case StageError():
            return UnavailableError(f"The payload couldn't be checked. {error}", "preparation_failed")
        case EngineDeadError() | AdapterUnavailableError():
            return UnavailableError(str(error), "engine_unavailable")
        case _:
            return None


def install(app: FastAPI) -> None:
    """Make the application answer every error in the one shape."""
    for kind in (ServeError, RequestValidationError, *_FROM_BELOW):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_middleware(RequestIds)
    app.add_middleware(AnthropicErrors)  # the outermost


async def _answer(request: Request, error: Exception) -> JSONResponse:
    response = error_response(request, error)
    assert response is not None
    return response


def error_response(request: Request, error: Exception) -> JSONResponse | None:
    """Return the response to an error, and log it if it isn't the client's; None for an unexpected one."""
    known = as_serve_error(error)
    if known is None:
        return None
    status, _, headers = _STATUS[type(known)]
    if status >= 500:
        path = without_keys(request.url.path)
        logger.warning("%s %s, request %s: %s", request.method, path, request_id(request.scope), error)
    return JSONResponse(error_content(known), status, headers)


async def answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of the router: an unknown path, or a method that the path doesn't have."""
    assert isinstance(error, HTTPException)
    body = error_body(http_exception_message(request, error), "invalid_request_error", "route")
    return JSONResponse(body, error.status_code, error.headers)


def http_exception_message(request: Request, error: HTTPException) -> str:
    return {
        404: f"There is no path {request.url.path} here. /docs lists the routes.",
        405: f"{request.url.path} doesn't support {request.method}. /docs lists the routes.",
    }.get(error.status_code, str(error.detail))


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """The client disconnected: nothing failed, and no one reads this response."""
    return Response(status_code=499)
