"""Bodies of error responses."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ValidationError(BaseModel):
    """One problem of a request: its place, a sentence, and its kind."""

    loc: list[str | int] = Field(title="Location")
    msg: str = Field(title="Message")
    type: str = Field(title="Error Type")


def _details_may_be_missing(schema: dict[str, Any]) -> None:
    schema.pop("required", None)


class HTTPValidationError(BaseModel):
    """A request whose contents can't be accepted."""

    model_config = ConfigDict(json_schema_extra=_details_may_be_missing)

    detail: list[ValidationError]


class ErrorDescription(BaseModel):
    message: str
    """A sentence: what was wrong and what to do."""
    type: str
    code: str | None
    """The kind of error, as a word that programs can test."""
    param: str | None
    """The part of the request that is wrong."""


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDescription
    detail: list[ValidationError] | None = None
    """All problems of an invalid request."""
