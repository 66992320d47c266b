"""Find NaN and infinities, which JSON forbids but parsers accept."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from pydantic_core import from_json

Loc = tuple[str | int, ...]

# Numbers may overflow to infinity from here on.
_LARGE_EXPONENT = re.compile(rb"[eE]\+?[0-9]{3}")


def not_finite_place(raw: bytes) -> Loc | None:
    """Return the place of the first NaN or infinity in JSON that pydantic accepted; None if all numbers are finite."""
    if b"NaN" in raw or b"Infinity" in raw or _LARGE_EXPONENT.search(raw):  # a quick check, which also matches text
        return _find(from_json(raw), ())
    return None


def _find(value: Any, loc: Loc) -> Loc | None:
    """The recursion is bounded: the JSON parser accepted the nesting."""
    match value:
        case float():
            return None if math.isfinite(value) else loc
        case dict():
            children: Iterable[tuple[str | int, Any]] = value.items()
        case list():
            children = enumerate(value)
        case _:
            return None
    return next((place for key, child in children if (place := _find(child, (*loc, key)))), None)
