"""The envelope of every response: `is_success`, and after a failure `error_code` and `error_message`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from tandem.serve.api.auth import has_key, requires
from tandem.serve.api.error_responses import (
    answer_http_exception,
    as_serve_error,
    http_exception_message,
    status_of,
)
from tandem.serve.api.request_ids import request_id, unexpected_message
from tandem.serve.errors import (
    AuthenticationError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    ServeError,
)
from tandem.serve.modelarts.errors import (
    DUPLICATE_NAME,
    FORBIDDEN,
    INTERNAL,
    INVALID_REQUEST,
    INVALID_VALUE,
    NOT_AUTHORIZED,
    NOT_FOUND,
    PATH_DENIED,
    PATH_INVALID,
    TOKEN_INVALID,
    TOKEN_MISSING,
    TOO_MANY_REQUESTS,
    TOO_MANY_RESOURCES,
    WRONG_PROJECT,
    RejectedError,
)
from tandem.serve.modelarts.store.jobs import TooManyJobsError
from tandem.serve.names import RESERVED_ENTITIES

logger = logging.getLogger(__name__)
MAX_PROBLEMS = 5  # in one message
_STATUS = {
    NOT_FOUND: 404,
    DUPLICATE_NAME: 409,
    INVALID_VALUE: 400,
    FORBIDDEN: 403,
    INVALID_REQUEST: 400,
    NOT_AUTHORIZED: 403,
    TOKEN_MISSING: 401,
    WRONG_PROJECT: 403,
    PATH_INVALID: 400,
    PATH_DENIED: 403,
}
_CODE: dict[type[ServeError], str] = {
    AuthenticationError: TOKEN_INVALID,
    ForbiddenError: NOT_AUTHORIZED,
    NotFoundError: NOT_FOUND,
    ConflictError: DUPLICATE_NAME,
    QueueFullError: TOO_MANY_REQUESTS,
}
_FAMILY = re.compile(r"/v1/(?!preview/)[^/]+/(training-job-configs|training-jobs|job|built-in-algorithms)(/.*)?")


class Success(BaseModel):
    is_success: bool = True


class EnvelopeRoute(APIRoute):
    """A route that puts every error into the envelope."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        if match is not Match.NONE and found["path_params"].get("project_id") in RESERVED_ENTITIES:
            return Match.NONE, {}
        return match, found

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_in_envelope(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientDisconnect:
                raise
            except Exception as error:
                return error_response(request, error)

        return handle_in_envelope


class Failure(BaseModel):
    is_success: Literal[False] = False
    error_message: str
    error_code: str


def envelope_router() -> APIRouter:
    """Return a router whose routes need a key with role train."""
    return APIRouter(
        prefix="/{project_id}",
        route_class=EnvelopeRoute,
        tags=["training-job-configs"],
        dependencies=[requires("train")],
        responses={"default": {"model": Failure, "description": "The request was rejected, or failed"}},
    )


class OptionalSlash:
    """Middleware that drops a slash at the end of a path of this API."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/") and _FAMILY.fullmatch(scope["path"]):
            path = scope["path"].rstrip("/")
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


def install(app: FastAPI) -> None:
    """Put errors of requests without a route into the envelope if their path belongs to this API."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if not _FAMILY.fullmatch(request.url.path):
            return await answer_http_exception(request, error)
        code = NOT_FOUND if error.status_code == 404 else INVALID_REQUEST
        return envelope(code, http_exception_message(request, error), error.status_code, error.headers)

    app.add_exception_handler(HTTPException, answer)
    app.add_middleware(OptionalSlash)


def error_response(request: Request, error: Exception) -> JSONResponse:
    """Return the response for an error."""
    known = as_serve_error(error)
    if known is None:
        id = request_id(request.scope)
        logger.error("%s %s failed, request %s", request.method, request.url.path, id, exc_info=error)
        return envelope(INTERNAL, unexpected_message(id), 500)
    if isinstance(known, RejectedError):
        return envelope(known.code, known.message, _STATUS[known.code])
    if isinstance(known, TooManyJobsError):
        return envelope(TOO_MANY_RESOURCES, known.message, 400)
    status, headers = status_of(known)
    if isinstance(known, InvalidRequestError):
        is_missing = any(problem.type in ("missing", "extra_forbidden") for problem in known.problems)
        message = "; ".join(f"{problem.path}: {problem.msg}" for problem in known.problems[:MAX_PROBLEMS])
        return envelope(INVALID_REQUEST if is_missing else INVALID_VALUE, message, 400)
    code = _CODE.get(type(known), INTERNAL if status >= 500 else INVALID_REQUEST)
    if code == TOKEN_INVALID and not has_key(request):
        code = TOKEN_MISSING
    return envelope(code, known.message, status, headers)


def envelope(code: str, message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"is_success": False, "error_message": message, "error_code": code}, status, headers)
