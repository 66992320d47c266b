"""Lists for people, as a table, and for programs, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from tandem.runs.reporting.console import PlainConsole

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
WHOLE = ("job", "id", "model")
"""Headings of columns whose cells people copy."""


def print_table(out: PlainConsole, columns: Mapping[str, str], items: Iterable[Any]) -> None:
    """Print a table of items. `columns` maps headings to attributes; None is shown as an empty cell."""
    rows = [[_cell(getattr(item, name)) for name in columns.values()] for item in items]
    out.rows(list(columns), rows, WHOLE)


def print_json(out: PlainConsole, value: Any) -> None:
    """Print a value as one line of ASCII, which every program and terminal can read. Times are in ISO 8601."""
    out.print(json.dumps(value, default=_plain))


def attributes(items: Iterable[Any], *names: str) -> list[dict[str, Any]]:
    """Return these attributes of each item by name."""
    return [{name: getattr(item, name) for name in names} for item in items]


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{value!r} isn't JSON")


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
