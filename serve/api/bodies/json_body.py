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

from tandem.cluster.payloads.strict_json import not_finite_place
from tandem.serve.api.bodies.problems import NOT_FINITE, problems_of
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.errors import HTTPValidationError
from tandem.serve.api.wire.requests import RequestBody
from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.ingest.request_body import BodyLimit, receive

T = TypeVar("T")
B = TypeVar("B", bound=RequestBody)

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


async def json_object(request: Request, services: ServicesDep) -> dict[str, Any]:
    """A dependency: the body as any JSON object. Raises InvalidRequestError and the errors of `receive`."""
    return await _read(request, services, _OBJECT.validate_json)


async def _read(request: Request, services: Services, validate_json: Callable[[bytes], T]) -> T:
    body = bytearray()
    limit = BodyLimit(services.config.limits.max_request_bytes, "limits.max_request_bytes")
    await receive(request, limit, services.config.deadlines.receive_s, body.extend)
    return await run_in_threadpool(parse, validate_json, bytes(body))


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
