"""Reads JSON bodies: once, off the event loop, after authentication, with faults that name their place.

FastAPI's own body parameters are parsed on the event loop before any dependency runs; a body of tens of megabytes
would stop every other request meanwhile. So routes depend on `json_body(Model)`, and `documented(Model)` puts the body
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
from tandem.serve.api.schemas import HTTPValidationError, RequestBody
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.validation import NOT_FINITE, faults_of
from tandem.serve.errors import Fault, InvalidRequestError
from tandem.serve.ingest.request_body import BodyLimit, receive

T = TypeVar("T")
B = TypeVar("B", bound=RequestBody)

_OBJECT = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Received(Generic[T]):
    """A valid body."""

    value: T


def json_body(model: type[B]) -> Callable[[Request, Services], Awaitable[Received[B]]]:
    """A dependency: the body as `model`. Raises InvalidRequestError, and what `receive` does."""

    async def read(request: Request, services: ServicesDep) -> Received[B]:
        return Received(await _read(request, services, model.model_validate_json))

    return read


async def json_object(request: Request, services: ServicesDep) -> dict[str, Any]:
    """A dependency: the body as any JSON object. Raises InvalidRequestError, and what `receive` does."""
    return await _read(request, services, _OBJECT.validate_json)


async def _read(request: Request, services: Services, validate_json: Callable[[bytes], T]) -> T:
    body = bytearray()
    limit = BodyLimit(services.config.limits.max_request_bytes, "limits.max_request_bytes")
    await receive(request, limit, services.config.deadlines.receive_s, body.extend)
    return await run_in_threadpool(parse, validate_json, bytes(body))


def documented(model: type[RequestBody] | None = None, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Arguments of a route that takes this body, or any object, for its OpenAPI document. `headers`: what those of its
    answer say."""
    shown = {name: {"description": text, "schema": {"type": "string"}} for name, text in (headers or {}).items()}
    schema = {"$ref": f"#/components/schemas/{model.__name__}"} if model else {"type": "object"}
    return {
        "openapi_extra": {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}},
        "responses": {422: {"model": HTTPValidationError}} | ({200: {"headers": shown}} if shown else {}),
    }


def parse(validate_json: Callable[[bytes], T], raw: bytes) -> T:
    """What pydantic's `validate_json` makes of a body. Raises InvalidRequestError."""
    try:
        value = validate_json(raw)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequestError(faults_of(details, ("body",))) from None
    if (place := not_finite_place(raw)) is not None:
        raise InvalidRequestError([Fault(("body", *place), NOT_FINITE, "not_finite")])
    return value
