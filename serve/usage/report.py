"""The bill: sums of the ledger with what they cost, in order and in parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from tandem.serve.store.ledger.amounts import Amounts
from tandem.serve.store.ledger.sums import Asked, Group, Names, Sum
from tandem.serve.store.store import Store
from tandem.serve.usage.costs import cost

TIMES = ("day", "hour")


@dataclass
class Line:
    """A group with its amounts and costs."""

    group: Group
    amounts: Amounts = field(default_factory=Amounts)
    costs: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))

    @property
    def id(self) -> str:
        """Names the group in cursors."""
        return ",".join(f"{name}={quote(value, safe=':')}" for name, value in self.group) or "total"

    @property
    def money(self) -> dict[str, float]:
        return {currency: float(amount) for currency, amount in sorted(self.costs.items())}

    def add(self, one: Sum, prices: Mapping[int, Mapping[str, Any]]) -> None:
        self.amounts += one.amounts
        if of_time := prices.get(one.prices_id):
            self.costs[of_time["currency"]] += cost(one.amounts, of_time, one.base_model)


@dataclass(frozen=True)
class Report:
    """All groups, and their total."""

    lines: Sequence[Line]
    total: Line
    names: Names


def report(store: Store, asked: Asked) -> Report:
    """Return the bill of an entity."""
    sums, names = store.usage_sums.sums(asked)
    prices = store.usage.prices()
    lines: dict[Group, Line] = {}
    total = Line(())
    for one in sums:
        lines.setdefault(one.group, Line(one.group)).add(one, prices)
        total.add(one, prices)
    return Report(sorted(lines.values(), key=_place), total, names)


def job_costs(store: Store, sums: Iterable[Sum]) -> dict[str, float]:
    """Return what all these sums cost together."""
    line, prices = Line(()), store.usage.prices()
    for one in sums:
        line.add(one, prices)
    return line.money


def _place(line: Line) -> tuple[Any, ...]:
    """Return the key of the order: by time, then the most expensive first, then who used most."""
    times = tuple(value for name, value in line.group if name in TIMES)
    used = line.amounts
    size = used.learner_seconds + used.engine_seconds + used.cpu_seconds
    return times, -sum(line.costs.values()), -size, -used.sampled_tokens, line.group
