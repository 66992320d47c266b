"""What JSON forbids and parsers let pass: NaN and infinities."""

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
    """Where the first NaN or infinity is in JSON that pydantic has accepted; None when all numbers are finite."""
    if b"NaN" in raw or b"Infinity" in raw or _LARGE_EXPONENT.search(raw):  # quick; text may look like it too
        return _find(from_json(raw), ())
    return None


def _find(value: Any, loc: Loc) -> Loc | None:
    """The depth of the recursion is bounded, since the JSON parser has accepted the value."""
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
