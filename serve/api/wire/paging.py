"""Lists in pages, as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Generic, Literal, Self, TypeVar

from fastapi import Query
from pydantic import BaseModel

from tandem.serve.errors import InvalidRequestError, Problem

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]


class Listed(BaseModel):
    """An item of a list; its id is the cursor of the page after it."""

    id: str


T = TypeVar("T", bound=Listed)


class Page(BaseModel, Generic[T]):
    """Part of a list. While `has_more`, request the next part with `after=last_id`."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, items: Sequence[T], limit: int) -> Self:
        """Return the page of `limit` items, from a query for `limit` + 1."""
        data = list(items[:limit])
        first_id, last_id = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, first_id=first_id, last_id=last_id, has_more=len(items) > limit)


def numbered_cursor(owner: str, number: int) -> str:
    """Return the id of an item that its owner numbers. As a cursor it stays valid when the item is deleted."""
    return f"{owner}:{number}"


def cursor_number(cursor: str, owner: str) -> int:
    """Return the number in a cursor of this owner. Raises InvalidRequestError."""
    prefix, _, number = cursor.rpartition(":")
    if prefix != owner or not (number.isascii() and number.isdigit() and len(number) < 10):
        raise unknown_cursor()
    return int(number)


def unknown_cursor() -> InvalidRequestError:
    """Return the error for a cursor that isn't of this list."""
    message = "isn't the id of an item of this list; send the last_id of one of its pages"
    return InvalidRequestError([Problem(("query", "after"), message)])
