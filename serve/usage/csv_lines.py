"""The bill as CSV, for spreadsheets: no cell begins like a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from tandem.serve.usage.wire import UsageItem

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
AMOUNTS = (
    *("requests", "prompt_tokens", "cached_prompt_tokens", "sampled_tokens"),
    *("scored_tokens", "engine_scored_tokens", "trained_tokens"),
    *("seconds", "learner_seconds", "engine_seconds", "cpu_seconds"),
)
NAMED = {"model": "model_name", "key": "key_name"}


def csv_lines(items: Iterable[UsageItem], group_by: Sequence[str], currencies: Sequence[str]) -> Iterator[str]:
    """Yield a header and a line for each group, with a column for each currency."""
    columns = [column for name in group_by for column in (name, NAMED.get(name)) if column]
    yield _line([*columns, *AMOUNTS, *(f"cost_{currency}" for currency in currencies)])
    for item in items:
        names = [_text(getattr(item, column) or "") for column in columns]
        amounts = [getattr(item, name) for name in AMOUNTS]
        yield _line([*names, *amounts, *(item.costs.get(currency, 0.0) for currency in currencies)])


def _text(cell: str) -> str:
    """Return a cell that spreadsheets take as text: a quote before what they would compute."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _line(cells: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue()
