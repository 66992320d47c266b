"""Reads JSON bodies: once, off the event loop, after authentication, with problems that name their place.

FastAPI's own body parameters are parsed on the event loop before any dependency runs; a body of tens of megabytes
would block every other request meanwhile. So routes depend on `json_body(Model)`, and `documented(Model)` puts the body
into the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from tandem.cluster.config import TandemConfig
from tandem.cluster.payloads.strict_json import not_finite_place
from tandem.serve.api.bodies.problems import NOT_FINITE, problems_of
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.errors import HTTPValidationError
from tandem.serve.api.wire.requests import RequestBody
from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.ingest.request_body import BodyLimit, receive

T = TypeVar("T")
B = TypeVar("B", bound=RequestBody)

SMALL_BYTES = 32 << 10
"""A body up to this size is parsed sooner than a thread for it starts."""
_OBJECT = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Received(Generic[T]):
    """A valid body."""

    value: T


def json_body(model: type[B]) -> Callable[[Request, Services], Awaitable[Received[B]]]:
    """Return a dependency that gives the body as `model`. It raises InvalidRequestError and the errors of `receive`."""

    async def read(request: Request, services: ServicesDep) -> Received[B]:
        return Received(await _read(request, services, model.model_validate_json))

    return read


@dataclass(frozen=True)
class JsonText:
    """A JSON object, and its text without a content coding."""

    raw: bytes
    value: dict[str, Any]


async def json_text(request: Request, services: ServicesDep) -> JsonText:
    """A dependency: the body as any JSON object. Raises InvalidRequestError and the errors of `receive`."""
    return await receive_object(request, services.config)


async def receive_object(request: Request, config: TandemConfig) -> JsonText:
    """Return the body as any JSON object. Raises InvalidRequestError and the errors of `receive`."""
    raw = await _receive(request, config)
    return JsonText(raw, await _parsed(_OBJECT.validate_json, raw))


async def _read(request: Request, services: Services, validate_json: Callable[[bytes], T]) -> T:
    return await _parsed(validate_json, await _receive(request, services.config))


async def _receive(request: Request, config: TandemConfig) -> bytes:
    body = bytearray()
    limit = BodyLimit(config.limits.max_request_bytes, "limits.max_request_bytes")
    await receive(request, limit, config.deadlines.receive_s, body.extend, may_block=False)
    return bytes(body)


async def _parsed(validate_json: Callable[[bytes], T], raw: bytes) -> T:
    if len(raw) <= SMALL_BYTES:
        return parse(validate_json, raw)
    return await run_in_threadpool(parse, validate_json, raw)


def documented(model: type[RequestBody] | None = None, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the arguments of a route that document its body, any object without a model, and its response headers."""
    shown = {name: {"description": text, "schema": {"type": "string"}} for name, text in (headers or {}).items()}
    schema = {"$ref": f"#/components/schemas/{model.__name__}"} if model else {"type": "object"}
    return {
        "openapi_extra": {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}},
        "responses": {422: {"model": HTTPValidationError}} | ({200: {"headers": shown}} if shown else {}),
    }


def parse(validate_json: Callable[[bytes], T], raw: bytes) -> T:
    """Validate a body with pydantic's `validate_json`. Raises InvalidRequestError."""
    try:
        value = validate_json(raw)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequestError(problems_of(details, ("body",))) from None
    if (place := not_finite_place(raw)) is not None:
        raise InvalidRequestError([Problem(("body", *place), NOT_FINITE, "not_finite")])
    return value
