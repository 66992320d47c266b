"""The ledger: amounts that engines have counted, prices, and sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from tandem.cluster.engine.metrics.usage import Charged, EngineUsage, Sampling, UsageBatch, Used
from tandem.serve.store.database import Database, Lock
from tandem.serve.store.ledger.amounts import AMOUNTS, KEY, NO_STEP, Account, Amounts, add_amounts, add_rows
from tandem.serve.store.tables.training import JobRow, ModelRow
from tandem.serve.store.tables.usage import PricesRow, SamplingRow, UsageRow, UsageSourceRow

JOIN_S = 2.0
"""Stretches of sampling with a shorter pause between them are one."""
SAMPLING_KEPT = timedelta(days=31)
HOURS_KEPT = timedelta(days=62)
"""Older rows are those of days."""
ROWS_AT_ONCE = 500


class Usage:
    def __init__(self, database: Database):
        self._database = database

    def set_prices(self, content: Mapping[str, Any]) -> None:
        """Use these prices from now on. Amounts until now keep the prices that they had."""
        with self._database.write() as session:
            self._database.lock(session, Lock.SET_PRICES)
            newest = session.scalar(select(PricesRow).order_by(PricesRow.id.desc()).limit(1))
            if (newest is None and not content) or (newest is not None and newest.content == content):
                return
            session.add(PricesRow(content=dict(content), created_at=self._database.now()))

    def prices(self) -> dict[int, Mapping[str, Any]]:
        """Return all prices by their id."""
        with self._database.read() as session:
            return {row.id: row.content for row in session.scalars(select(PricesRow))}

    def record(self, usage: EngineUsage) -> None:
        """Add the batches of an engine replica that aren't recorded yet."""
        now = self._database.now()
        with self._database.write() as session:
            self._database.lock(session, Lock.RECORD_USAGE)
            source = session.get(UsageSourceRow, usage.source)
            if source is None:
                source = UsageSourceRow(source=usage.source, last_batch=0)
                session.add(source)
            new = [batch for batch in usage.batches if batch.number > source.last_batch]
            if not new:
                return
            source.last_batch, source.recorded_at = new[-1].number, now
            add_amounts(session, now, _charges(session, usage.base_model, new))
            for batch in new:
                for stretch in batch.sampling:
                    _add_sampling(session, usage.source, stretch)

    def compact(self) -> None:
        """Put rows of hours that are long past together into days, and forget old stretches of sampling."""
        now = self._database.now()
        while self._compact_some(now - HOURS_KEPT):
            pass
        with self._database.write() as session:
            session.execute(delete(SamplingRow).where(SamplingRow.ended_at < now - SAMPLING_KEPT))
            session.execute(delete(UsageSourceRow).where(UsageSourceRow.recorded_at < now - SAMPLING_KEPT))

    def _compact_some(self, before: datetime) -> bool:
        end = before.replace(hour=0, minute=0, second=0, microsecond=0)
        with self._database.write() as session:
            self._database.lock(session, Lock.RECORD_USAGE)
            query = select(UsageRow).where(UsageRow.start < end, UsageRow.step != NO_STEP).limit(ROWS_AT_ONCE)
            rows = session.scalars(query).all()
            days: dict[tuple[Any, ...], dict[str, Any]] = {}
            for row in rows:
                day = row.start.replace(hour=0)
                values = {name: getattr(row, name) for name in KEY} | {"start": day, "step": NO_STEP}
                into = days.setdefault(tuple(values[name] for name in KEY), values | dict.fromkeys(AMOUNTS, 0))
                for name in AMOUNTS:
                    into[name] += getattr(row, name)
                session.delete(row)
            session.flush()
            add_rows(session, list(days.values()))
            return len(rows) == ROWS_AT_ONCE


def _charges(session: Session, base_model: str, batches: Iterable[UsageBatch]) -> list[tuple[Account, Amounts]]:
    """Return who is charged with what, once for each account."""
    sums: dict[Charged, Used] = {}
    for batch in batches:
        for charged, used in batch.used.items():
            sums.setdefault(charged, Used()).add(used)
    jobs = _models_of(session, {charged.job_id for charged in sums if charged.purpose == "score"})
    amounts: dict[Account, Amounts] = {}
    for charged, used in sums.items():
        account = _account(base_model, charged, jobs)
        amounts[account] = amounts.get(account, Amounts()) + Amounts(**vars(used))
    return list(amounts.items())


def _account(base_model: str, charged: Charged, jobs: Mapping[str, tuple[JobRow, ModelRow]]) -> Account:
    if charged.purpose == "score" and charged.job_id in jobs:
        job, model = jobs[charged.job_id]
        return Account(
            entity=model.entity,
            base_model=base_model,
            model_id=model.id,
            step=model.next_step,
            key_id=job.api_key_id or "",
            job_id=job.id,
            phase="score",
        )
    if charged.purpose != "sample":
        return Account(entity="", base_model=base_model, step=0, phase="check")
    return Account(
        entity=charged.entity,
        base_model=base_model,
        model_id=charged.model_id,
        step=charged.step,
        key_id=charged.key_id,
        job_id=charged.job_id,
        phase="sample",
    )


def _models_of(session: Session, job_ids: set[str]) -> dict[str, tuple[JobRow, ModelRow]]:
    if not job_ids:
        return {}
    query = select(JobRow, ModelRow).join(JobRow.model).where(JobRow.id.in_(job_ids))
    return {job.id: (job, model) for job, model in session.execute(query)}


def _add_sampling(session: Session, source: str, stretch: Sampling) -> None:
    if not stretch.model_id:
        return
    began, ended = (datetime.fromtimestamp(at, UTC) for at in (stretch.began_at, stretch.ended_at))
    own = SamplingRow.model_id == stretch.model_id, SamplingRow.source == source
    query = select(SamplingRow).where(*own, SamplingRow.ended_at >= began - timedelta(seconds=JOIN_S))
    before = session.scalar(query.order_by(SamplingRow.ended_at.desc()).limit(1))
    if before is None:
        session.add(SamplingRow(model_id=stretch.model_id, source=source, began_at=began, ended_at=ended))
        session.flush()
    else:
        before.ended_at = max(before.ended_at, ended)
