"""Reads JSON bodies: once, off the event loop, after authentication, with faults that name their place.

FastAPI's own body parameters are parsed on the event loop before any dependency runs; a body of tens of megabytes
would stop every other request meanwhile. So routes depend on `json_body(Model)`, and `documented(Model)` puts the body
into the OpenAPI document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool

from tandem.serve.errors import Fault, InvalidRequestError
from tandem.serve.faults import NOT_FINITE, Loc, faults_of
from tandem.serve.schemas import HTTPValidationError, RequestBody

T = TypeVar("T")
B = TypeVar("B", bound=RequestBody)

# Numbers may overflow to infinity from here on.
_LARGE_EXPONENT = re.compile(rb"[eE]\+?[0-9]{3}")
_OBJECT = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Received(Generic[T]):
    """A valid body, and the bytes that it came in."""

    value: T
    raw: bytes


def json_body(model: type[B]) -> Callable[[Request], Awaitable[Received[B]]]:
    """A dependency: the body as `model`. Raises InvalidRequestError."""

    async def read(request: Request) -> Received[B]:
        raw = await request.body()
        return Received(await run_in_threadpool(_parse, model.model_validate_json, raw), raw)

    return read


async def json_object(request: Request) -> dict[str, Any]:
    """A dependency: the body as any JSON object. Raises InvalidRequestError."""
    return _parse(_OBJECT.validate_json, await request.body())


def documented(model: type[RequestBody] | None = None) -> dict[str, Any]:
    """Arguments of a route that takes this body, or any object, for its OpenAPI document."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"} if model else {"type": "object"}
    return {
        "openapi_extra": {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}},
        "responses": {422: {"model": HTTPValidationError}},
    }


def _parse(validate_json: Callable[[bytes], T], raw: bytes) -> T:
    try:
        value = validate_json(raw)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequestError(faults_of(details, ("body",))) from None
    if _may_be_not_finite(raw) and (place := _find_not_finite(from_json(raw), ("body",))):
        raise InvalidRequestError([Fault(place, NOT_FINITE, "finite_number")])
    return value


def _may_be_not_finite(raw: bytes) -> bool:
    """A quick look for what parsers read as NaN or infinity; text may look like it too."""
    return b"NaN" in raw or b"Infinity" in raw or _LARGE_EXPONENT.search(raw) is not None


def _find_not_finite(value: Any, loc: Loc) -> Loc | None:
    """Where the first NaN or infinity is. Its depth is bounded, since the JSON parser has accepted the body."""
    match value:
        case float():
            return None if math.isfinite(value) else loc
        case dict():
            children: Iterable[tuple[str | int, Any]] = value.items()
        case list():
            children = enumerate(value)
        case _:
            return None
    return next((place for key, child in children if (place := _find_not_finite(child, (*loc, key)))), None)
