"""Sums over the ledger, by model, key, job, day and so on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import func, select

from tandem.serve.store.database import Database
from tandem.serve.store.ledger.amounts import AMOUNTS, Amounts
from tandem.serve.store.tables.training import ApiKeyRow, ModelRow
from tandem.serve.store.tables.usage import UsageRow

GroupBy = Literal["base_model", "day", "hour", "job", "key", "model", "phase", "project", "version"]
COLUMNS: dict[str, tuple[Any, ...]] = {
    "base_model": (UsageRow.base_model,),
    "day": (UsageRow.start,),
    "hour": (UsageRow.start,),
    "job": (UsageRow.job_id,),
    "key": (UsageRow.key_id,),
    "model": (UsageRow.base_model, UsageRow.model_id),
    "phase": (UsageRow.phase,),
    "project": (UsageRow.model_id,),
    "version": (UsageRow.base_model, UsageRow.model_id, UsageRow.step),
}


@dataclass(frozen=True)
class Asked:
    """Which rows are summed, and how."""

    entity: str
    begin: datetime
    end: datetime
    group_by: tuple[GroupBy, ...] = ()
    model_id: str | None = None
    job_id: str | None = None
    key_id: str | None = None
    base_model: str | None = None


Group = tuple[tuple[str, str], ...]
"""Names and values of what rows are grouped by: ids of models, keys and jobs."""


@dataclass(frozen=True)
class Sum:
    """The amounts of a group that have one set of prices."""

    group: Group
    base_model: str
    prices_id: int
    amounts: Amounts


@dataclass(frozen=True)
class Names:
    """What ids in groups stand for."""

    models: Mapping[str, str]
    """entity/project/name"""
    projects: Mapping[str, str]
    """of models"""
    keys: Mapping[str, str]


class UsageSums:
    def __init__(self, database: Database):
        self._database = database

    def sums(self, asked: Asked) -> tuple[list[Sum], Names]:
        """Return the sums of an entity's rows between two times, which are those of whole hours."""
        columns = tuple(dict.fromkeys(column for name in asked.group_by for column in COLUMNS[name]))
        columns = tuple(dict.fromkeys((*columns, UsageRow.base_model, UsageRow.prices_id)))
        wanted = [UsageRow.entity == asked.entity, UsageRow.start >= asked.begin, UsageRow.start < asked.end]
        for name in ("model_id", "job_id", "key_id", "base_model"):
            if (value := getattr(asked, name)) is not None:
                wanted.append(getattr(UsageRow, name) == value)
        summed = [func.sum(getattr(UsageRow, name)) for name in AMOUNTS]
        with self._database.read() as session:
            rows = session.execute(select(*columns, *summed).where(*wanted).group_by(*columns)).all()
            models = session.execute(select(ModelRow.id, ModelRow).where(ModelRow.entity == asked.entity)).all()
            keys = session.execute(select(ApiKeyRow.id, ApiKeyRow.name).where(ApiKeyRow.entity == asked.entity)).all()
        names = Names(
            models={id: model.path for id, model in models},
            projects={id: model.project for id, model in models},
            keys={id: name for id, name in keys},
        )
        found: dict[tuple[Group, str, int], Amounts] = defaultdict(Amounts)
        for row in rows:
            values = dict(zip((column.key for column in columns), row, strict=False))
            group = tuple((name, _VALUES[name](values, names)) for name in asked.group_by)
            amounts = (kind(value) for kind, value in zip(_KINDS, row[len(columns) :], strict=True))
            found[group, values["base_model"], values["prices_id"]] += Amounts(*amounts)
        return [Sum(*key, amounts) for key, amounts in found.items()], names


_KINDS: Sequence[type] = [float if name.endswith("seconds") else int for name in AMOUNTS]  # PostgreSQL sums to decimals
_VALUES: dict[str, Callable[[Mapping[str, Any], Names], str]] = {
    "base_model": lambda row, _: row["base_model"],
    "day": lambda row, _: row["start"].astimezone(UTC).strftime("%Y-%m-%d"),
    "hour": lambda row, _: row["start"].astimezone(UTC).strftime("%Y-%m-%dT%H:00Z"),
    "job": lambda row, _: row["job_id"],
    "key": lambda row, _: row["key_id"],
    "model": lambda row, _: row["model_id"] or row["base_model"],
    "phase": lambda row, _: row["phase"],
    "project": lambda row, names: names.projects.get(row["model_id"], ""),
    "version": lambda row, _: f"{row['model_id'] or row['base_model']}:step{row['step']}",
}
