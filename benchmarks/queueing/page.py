"""Write tables into a page, between `<!-- NAME: written by benchmarks/scaling.py -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


def write_tables(page: Path, tables: Mapping[str, Sequence[Record]]) -> None:
    """Replace each table of the page. Raise ValueError if the page doesn't have exactly one place for it."""
    text = page.read_text()
    for name, rows in tables.items():
        place = rf"(<!-- {name}: written by benchmarks/scaling\.py -->\n).*?(<!-- end -->)"
        found = list(re.finditer(place, text, flags=re.DOTALL))
        if len(found) != 1:
            raise ValueError(f"{page} has {len(found)} places for the table {name!r} and needs exactly one.")
        text = text[: found[0].end(1)] + markdown(rows) + text[found[0].start(2) :]
    page.write_text(text)


def markdown(rows: Sequence[Record]) -> str:
    columns = list(rows[0])
    right = [isinstance(rows[0][column], int | float) for column in columns]
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("--:" if is_right else "---" for is_right in right) + "|",
    ]
    lines += ["| " + " | ".join(shown(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """Format floats with three digits, and anything else as it is."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
