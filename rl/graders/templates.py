"""Templates of graders: text with `{{item.answer}}` and `{{sample.output_text}}`.

A placeholder is a path into the row (`item`) or the answer (`sample`): names after dots, and indices in brackets, like
`{{ sample.output_tools[0].function.name }}`. A string is inserted as it is, any other value as JSON. Nothing is
evaluated, so a row can't inject anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tandem.rl.graders.errors import GraderError

SAMPLE_FIELDS = ("output_text", "output_json", "output_tools", "choices")
_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"(item|sample)((?:\.[\w-]+|\[\d+\]|\[\"[^\"]*\"\]|\['[^']*'\])*)")
_PART = re.compile(r"\.([\w-]+)|\[(\d+)\]|\[\"([^\"]*)\"\]|\['([^']*)'\]")

Path = tuple[str | int, ...]


def check_template(text: str) -> None:
    """Raise GraderError unless each placeholder is a path into `item` or a field of `sample`."""
    for found in _PLACEHOLDER.finditer(text):
        path = _parsed(found[1].strip())
        if path[0] == "sample" and (len(path) < 2 or path[1] not in SAMPLE_FIELDS):
            raise _invalid(found[1].strip(), f"a sample has {', '.join(SAMPLE_FIELDS)}")


def render(text: str, item: Any, sample: Mapping[str, Any]) -> str:
    """Return the text with its placeholders filled in. Raise GraderError for one that leads nowhere."""
    names = {"item": item, "sample": sample}
    return _PLACEHOLDER.sub(lambda found: _shown(_value(found[1].strip(), names)), text)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(expression: str, names: Any) -> Any:
    value = names
    for part in _parsed(expression):
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            what = f"[{part}]" if isinstance(part, int) else repr(part)
            raise _invalid(expression, f"there is no {what} at that place") from None
    return value


def _parsed(expression: str) -> Path:
    match = _PATH.fullmatch(expression)
    if match is None:
        raise _invalid(expression, "write a path like item.answer, sample.output_text or sample.output_json.x[0]")
    parts = [
        int(found[2]) if found[2] else found[1] or found[3] or found[4] or "" for found in _PART.finditer(match[2])
    ]
    return (match[1], *parts)


def _invalid(expression: str, reason: str) -> GraderError:
    shown = expression if len(expression) <= 80 else f"{expression[:80]}…"
    return GraderError("invalid_variable_error", f"{{{{{shown}}}}} can't be filled in: {reason}")
