"""How this API says yes and no: `is_success`, and for a failure `error_code` and `error_message`."""

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
from tandem.serve.names import RESERVED_ENTITIES

logger = logging.getLogger(__name__)
MAX_FAULTS = 5  # that one message names
INTERNAL = "ModelArts.0010"
NOT_FOUND = "ModelArts.0102"
DUPLICATE_NAME = "ModelArts.0103"
INVALID_VALUE = "ModelArts.0104"
FORBIDDEN = "ModelArts.0105"
TOO_MANY_RESOURCES = "ModelArts.0106"
INVALID_REQUEST = "ModelArts.0107"
NOT_AUTHORIZED = "ModelArts.0108"
TOO_MANY_REQUESTS = "ModelArts.0114"
TOKEN_MISSING = "ModelArts.0201"
TOKEN_INVALID = "ModelArts.0203"
WRONG_PROJECT = "ModelArts.0210"
PATH_INVALID = "ModelArts.0404"
PATH_DENIED = "ModelArts.0415"

_STATUS = {
    NOT_FOUND: 404,
    DUPLICATE_NAME: 409,
    INVALID_VALUE: 400,
    FORBIDDEN: 403,
    TOO_MANY_RESOURCES: 400,
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


class Refused(ServeError, ValueError):
    """A request that this API refuses; `code` is one of its error codes."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message, code, param)

    def __reduce__(self) -> tuple[type, tuple[str, str, str | None]]:
        return type(self), (self.code, self.message, self.param)


class Success(BaseModel):
    is_success: bool = True


class EnvelopeRoute(APIRoute):
    """A route that answers every error in the envelope."""

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
    """A router of this API, whose routes need a key with role train."""
    return APIRouter(
        prefix="/{project_id}",
        route_class=EnvelopeRoute,
        tags=["training-job-configs"],
        dependencies=[requires("train")],
        responses={"default": {"model": Failure, "description": "Refused, or failed"}},
    )


class OptionalSlash:
    """Middleware: a slash at the end of a path of this API makes no difference."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/") and _FAMILY.fullmatch(scope["path"]):
            path = scope["path"].rstrip("/")
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


def install(app: FastAPI) -> None:
    """Answers requests in the envelope that belong to this API by their path but have no route."""

    async def answer(request: Request, error: HTTPException) -> JSONResponse:
        if not _FAMILY.fullmatch(request.url.path):
            return await answer_http_exception(request, error)
        code = NOT_FOUND if error.status_code == 404 else INVALID_REQUEST
        return envelope(code, http_exception_message(request, error), error.status_code, error.headers)

    app.add_exception_handler(HTTPException, answer)
    app.add_middleware(OptionalSlash)


def error_response(request: Request, error: Exception) -> JSONResponse:
    """Any error, in the envelope."""
    known = as_serve_error(error)
    if known is None:
        id = request_id(request.scope)
        logger.error("%s %s failed, request %s", request.method, request.url.path, id, exc_info=error)
        return envelope(INTERNAL, unexpected_message(id), 500)
    if isinstance(known, Refused):
        return envelope(known.code, known.message, _STATUS[known.code])
    status, headers = status_of(known)
    if isinstance(known, InvalidRequestError):
        is_missing = any(fault.type in ("missing", "extra_forbidden") for fault in known.problems)
        message = "; ".join(f"{fault.path}: {fault.msg}" for fault in known.problems[:MAX_FAULTS])
        return envelope(INVALID_REQUEST if is_missing else INVALID_VALUE, message, 400)
    code = _CODE.get(type(known), INTERNAL if status >= 500 else INVALID_REQUEST)
    if code == TOKEN_INVALID and not has_key(request):
        code = TOKEN_MISSING
    return envelope(code, known.message, status, headers)


def envelope(code: str, message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"is_success": False, "error_message": message, "error_code": code}, status, headers)
