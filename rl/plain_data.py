"""Convert values of user code into plain data that JSON can hold, or name the part that can't be converted.

Needs neither numpy nor torch: their scalars and arrays are recognised by their methods.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from tandem.rl.errors import RLError

MAX_DEPTH = 100
"""Parsers of JSON stop at some 200 levels."""
MAX_SIZE = 64 << 20
"""Characters and integers in lists of all parts together. A job's request may have a gigabyte, for all its rollouts."""
MAX_VALUES = 4_000_000
"""Values of all parts together, except integers in lists. More would stop all other rollouts for too long."""
MAX_INT_BITS = 4096
"""Longer integers are rejected by parsers of JSON, among them Python's own."""

Place = tuple[str | int, ...]


class NotPlainError(RLError, ValueError):
    """A value that JSON can't hold.

    Attributes:
        place: its path, like ("logs", 0).
        reason: what is wrong, and what to do.
    """

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason

    def __str__(self) -> str:
        return f"{place_text(self.place)}: {self.reason}"


def place_text(place: Place) -> str:
    """Return a path as text, short and printable: its names come from user code."""
    parts = (part if isinstance(part, int) else part[:64] for part in place)
    text = ".".join(str(part) for part in parts) or "the result"
    return text if text.isprintable() else ascii(text)[1:-1]


def number(value: Any) -> Any:
    """Return a number of any library as Python's int, float or bool, and any other value unchanged.

    Such numbers are scalars and arrays of one element of numpy and torch, decimals, fractions and members of an enum.
    One that a float can't hold becomes infinite, or NaN.
    """
    if isinstance(value, Enum):
        value = value.value
    if type(value) in (bool, int, float) or value is None:
        return value
    if (array := _array(value)) is not None and math.prod(array) == 1:
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, float | int):
        return float(value) if isinstance(value, float) else int(value)
    if isinstance(value, Decimal | Fraction):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
        except ValueError:  # a signalling NaN
            return math.nan
    return value


def finite_number(value: Any) -> float | int | bool | None:
    """Return a number as `number` does if it is finite and a 64-bit integer or float can hold it, else None."""
    found = number(value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return found if isinstance(found, bool) else None
    if isinstance(found, int) and not -(2**63) <= found < 2**63:
        try:
            found = float(found)
        except OverflowError:
            return None
    return found if math.isfinite(found) else None


def plain(value: Any, place: Place = ()) -> Any:
    """Return a copy of a value that consists of dict, list, str, int, float, bool and None. Raise NotPlainError.

    Numbers are those of `number`. Arrays, tuples, sets and deques become lists. Objects with fields become dicts.
    Dates, paths and UUIDs become text, and bytes too if they are UTF-8.
    """
    return _Walk().plain(value, place)


class _Walk:
    def __init__(self) -> None:
        self._size = self._num_values = 0

    def plain(self, value: Any, place: Place) -> Any:
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise NotPlainError(
                place[:3], f"the result has more than {MAX_VALUES} values, or contains itself; shorten it"
            )
        kind = type(value)
        if kind is int or kind is float:
            return _checked_number(value, place)
        if value is None or kind is bool:
            return value
        if kind is str:
            return self._text(value, place)
        if len(place) > MAX_DEPTH:
            raise NotPlainError(place[:3], f"it is nested deeper than {MAX_DEPTH} levels, or contains itself")
        try:
            return self._converted(value, place)
        except NotPlainError:
            raise
        except Exception as error:  # a method of the value
            raise NotPlainError(place, f"{type(value).__name__} can't be converted ({type(error).__name__})") from error

    def _converted(self, value: Any, place: Place) -> Any:
        match value:
            case Enum():
                return self.plain(value.value, place)
            case str():
                return self._text(str.__str__(value), place)
            case Mapping():
                return self._mapping(value, place)
            case bytes() | bytearray():
                try:
                    return self._text(value.decode(), place)
                except UnicodeDecodeError:
                    raise NotPlainError(place, "these bytes aren't UTF-8 text; use base64 or leave them out") from None
            case list() | tuple() | set() | frozenset() | deque():
                return self._list(value, place)
            case BaseModel():
                return self._mapping(set_fields(value), place)
            case datetime() | date() | time():
                return value.isoformat()
            case timedelta():
                return value.total_seconds()
            case PurePath() | UUID():
                return self._text(str(value), place)
        found = number(value)
        if isinstance(found, bool | int | float):
            return _checked_number(found, place)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._mapping({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, place)
        if (shape := _array(value)) is not None:
            self._count(math.prod(shape), place)
            return self.plain(value.tolist(), place)
        raise NotPlainError(
            place, f"{type(value).__name__} isn't data that JSON can hold; use numbers, text, lists and dicts"
        )

    def _mapping(self, value: Mapping[Any, Any], place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in value.items():
            name = self._key(key, place)
            if name in found:
                raise NotPlainError((*place, name), "two keys of this dict are written alike; rename one")
            found[name] = self.plain(item, (*place, name))
        return found

    def _list(self, value: Iterable[Any], place: Place) -> list[Any]:
        if type(value) is list and set(map(type, value)) == {int}:  # token ids, which are most of a long trajectory
            self._count(len(value), place)
            return [_checked_number(item, place) for item in value]
        return [self.plain(item, (*place, index)) for index, item in enumerate(value)]

    def _key(self, key: Any, place: Place) -> str:
        """Return a key as text; JSON has no others. Numbers are written as `json` writes them."""
        key = number(key)
        if isinstance(key, str):
            return self._text(str.__str__(key), (*place, key))
        if key is None or isinstance(key, bool):
            return {None: "null", True: "true", False: "false"}[key]
        if isinstance(key, int | float):
            return repr(_checked_number(key, place))
        raise NotPlainError(place, f"a key of this dict is {type(key).__name__}; use text")

    def _text(self, value: str, place: Place) -> str:
        self._count(len(value), place)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise NotPlainError(
                    place,
                    f"character {error.start} of this text is half of a character (a surrogate), which UTF-8 doesn't "
                    "have; decode the program's output with errors='replace'",
                ) from None
        return value

    def _count(self, size: int, place: Place) -> None:
        self._size += size
        if self._size > MAX_SIZE:
            raise NotPlainError(place, f"the result is larger than {MAX_SIZE >> 20} MiB here; shorten it")


def set_fields(model: BaseModel) -> dict[str, Any]:
    """Return the fields of a pydantic object that were set, or changed from their default, and its unknown keys."""
    known = type(model).model_fields
    return {
        name: value
        for name, value in model
        if name in model.model_fields_set or name not in known or value != known[name].get_default()
    }


def _checked_number(value: float | int, place: Place) -> float | int:
    if isinstance(value, float) and not math.isfinite(value):
        raise NotPlainError(place, f"it is {value}, and JSON has neither NaN nor infinities")
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise NotPlainError(place, f"this integer has more than {MAX_INT_BITS} bits; write it as text")
    return value


def _array(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a scalar or array of numpy, torch and the like, else None."""
    shape = getattr(value, "shape", None)
    if isinstance(value, type) or shape is None or not (hasattr(value, "item") and hasattr(value, "tolist")):
        return None
    return tuple(shape) if isinstance(shape, tuple) and all(isinstance(size, int) for size in shape) else None
