"""Adds amounts to the ledger's rows, within the transaction of what caused them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from functools import cache

from sqlalchemy import Executable, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from tandem.serve.store.tables.training import plain
from tandem.serve.store.tables.usage import PricesRow, UsageRow

NO_STEP = -1


@dataclass(frozen=True)
class Account:
    """To whom amounts are charged, and for which part of the work."""

    entity: str
    base_model: str
    model_id: str = ""
    step: int = NO_STEP
    key_id: str = ""
    job_id: str = ""
    phase: str = ""


@dataclass(frozen=True)
class Amounts:
    """Amounts that add up."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    sampled_tokens: int = 0
    scored_tokens: int = 0
    engine_scored_tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    learner_seconds: float = 0.0
    engine_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*(mine + others for mine, others in zip(astuple(self), astuple(other), strict=True)))


AMOUNTS = tuple(field.name for field in fields(Amounts))
KEY = ("entity", "start", "base_model", "model_id", "step", "key_id", "job_id", "phase", "prices_id")


_NEWEST_PRICES = select(func.max(PricesRow.id))


def add_amounts(session: Session, now: datetime, charged: Iterable[tuple[Account, Amounts]]) -> None:
    """Add amounts to the rows of this hour, at the prices of now."""
    prices_id = session.connection().scalar(_NEWEST_PRICES) or 0
    start = now.replace(minute=0, second=0, microsecond=0)
    rows = [{"start": start, "prices_id": prices_id, **vars(account), **vars(amounts)} for account, amounts in charged]
    add_rows(session, rows)


def add_rows(session: Session, rows: list[dict[str, object]]) -> None:
    """Add rows of `UsageRow` to those with the same key, in an order in which two writers can't deadlock."""
    if not rows:
        return
    ordered = sorted(rows, key=lambda row: tuple(str(row[name]) for name in KEY))
    session.connection().execute(_adding(session.get_bind().dialect.name), ordered)


@cache
def _adding(dialect_name: str) -> Executable:
    """Return the statement that adds rows. Building it takes longer than running it."""
    table = plain(UsageRow)
    adding: sqlite.Insert | postgresql.Insert = (sqlite if dialect_name == "sqlite" else postgresql).insert(table)
    sums = {name: table.c[name] + adding.excluded[name] for name in AMOUNTS}
    return adding.on_conflict_do_update(index_elements=KEY, set_=sums)
