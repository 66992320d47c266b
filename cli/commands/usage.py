"""`tandem usage`: what was used and what it cost, as a table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from tandem.client import Client

NAMED = {"model": "model_name", "key": "key_name"}
AMOUNTS = {
    "cost": "cost",
    "prompts": "requests",
    "prompt tokens": "prompt_tokens",
    "cached": "cached_prompt_tokens",
    "sampled": "sampled_tokens",
    "scored": "scored",
    "trained": "trained_tokens",
    "learner s": "learner_seconds",
    "engine s": "engine_seconds",
    "CPU s": "cpu_seconds",
}


def groups(client: Client, begin: str | None, end: str | None, by: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield all groups of a bill, and then its total without a group."""
    after: str | None = None
    while True:
        page = client.usage(begin=begin, end=end, group_by=by, after=after)
        yield from page["data"] if by else ()
        if not page["has_more"]:
            yield page["total"]
            return
        after = page["last_id"]


def columns(by: Sequence[str]) -> dict[str, str]:
    """Return the headings of the table and the attributes of its rows."""
    return {name.replace("_", " "): name for name in by} | AMOUNTS


def row(group: Mapping[str, Any], by: Sequence[str]) -> SimpleNamespace:
    """Return a group as a row of the table; the total has its name in the first column."""
    names = {name: group.get(NAMED.get(name, name)) or group.get(name) for name in by}
    if by and "id" not in group:
        names[by[0]] = "total"
    amounts = {name: _shown(value) for name, value in group.items() if name in AMOUNTS.values()}
    cost = " + ".join(f"{currency} {money:.4f}" for currency, money in group["costs"].items())
    scored = group["scored_tokens"] + group["engine_scored_tokens"]
    return SimpleNamespace(**names, **amounts, cost=cost or None, scored=_shown(scored))


def _shown(amount: float) -> str | None:
    """Return a number for people; None for zero, so that the cell is empty."""
    if not amount:
        return None
    return f"{amount:,.1f}" if isinstance(amount, float) else f"{amount:,}"
