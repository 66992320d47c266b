"""The tables of the ledger: the phases of jobs, amounts used by the hour, prices, and when models were sampled."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from tandem.serve.store.tables.training import Table

_ID = String(36)
_NAME = String(128)
_JOB = String(64)


class AttemptRow(Table):
    """One attempt of a training job, as far as its phases were recorded."""

    __tablename__ = "job_attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    outcome: Mapped[str | None] = mapped_column(String(16))
    """How it ended; None while it runs, or if its process died."""
    claimed_at: Mapped[datetime]
    recorded_at: Mapped[datetime]
    """When its phases were last recorded."""


class PhaseRow(Table):
    """One phase of an attempt, in order by `seq`. Phases follow each other without gaps."""

    __tablename__ = "job_phases"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(Text)
    began_at: Mapped[datetime]
    ended_at: Mapped[datetime]
    seconds: Mapped[float] = mapped_column(Float(53))
    learner_seconds: Mapped[float] = mapped_column(Float(53))
    cpu_seconds: Mapped[float] = mapped_column(Float(53))
    trained_tokens: Mapped[int] = mapped_column(BigInteger)
    scored_tokens: Mapped[int] = mapped_column(BigInteger)
    engine_scored_tokens: Mapped[int] = mapped_column(BigInteger)


class UsageRow(Table):
    """Amounts used in an hour, or in a day that is long past. Empty texts and -1 stand for none, so that rows add up.

    Rows are never deleted with a model, a key or a job: they are the bill.
    """

    __tablename__ = "usage"
    __table_args__ = (Index("usage_job", "job_id"),)

    entity: Mapped[str] = mapped_column(_NAME, primary_key=True)
    start: Mapped[datetime] = mapped_column(primary_key=True)
    """The beginning of the hour in UTC."""
    base_model: Mapped[str] = mapped_column(_NAME, primary_key=True)
    model_id: Mapped[str] = mapped_column(_ID, primary_key=True)
    """Empty: the base model itself."""
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Of the version that was sampled, or that a job made; -1 in rows of a day."""
    key_id: Mapped[str] = mapped_column(_ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(_JOB, primary_key=True)
    """The training job, or the fine-tuning job that sampled."""
    phase: Mapped[str] = mapped_column(String(32), primary_key=True)
    """Of the job, or `sample`."""
    prices_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """The prices at that time; 0: none."""
    requests: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    """Of the prompt tokens, those found in the engine's prefix cache."""
    sampled_tokens: Mapped[int] = mapped_column(BigInteger)
    scored_tokens: Mapped[int] = mapped_column(BigInteger)
    engine_scored_tokens: Mapped[int] = mapped_column(BigInteger)
    trained_tokens: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Float(53))
    """Of the job, in this phase."""
    learner_seconds: Mapped[float] = mapped_column(Float(53))
    engine_seconds: Mapped[float] = mapped_column(Float(53))
    cpu_seconds: Mapped[float] = mapped_column(Float(53))


class PricesRow(Table):
    """Prices, valid until the next row. They stay, because yesterday's bill refers to yesterday's prices."""

    __tablename__ = "usage_prices"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    content: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class UsageSourceRow(Table):
    """An engine replica, and the last batch of amounts from it that is in the ledger."""

    __tablename__ = "usage_sources"

    source: Mapped[str] = mapped_column(_NAME, primary_key=True)
    last_batch: Mapped[int]
    recorded_at: Mapped[datetime]


class SamplingRow(Table):
    """A stretch of time in which an engine replica worked on completions of a model."""

    __tablename__ = "sampling_spans"
    __table_args__ = (Index("sampling_spans_model", "model_id", "ended_at"),)

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    model_id: Mapped[str] = mapped_column(_ID)
    source: Mapped[str] = mapped_column(_NAME)
    began_at: Mapped[datetime]
    ended_at: Mapped[datetime]
