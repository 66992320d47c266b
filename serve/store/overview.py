"""The state of many models at once: newest versions, recent rewards, open jobs, last errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, bindparam, func, select

from tandem.serve.store.database import Database
from tandem.serve.store.tables.training import JobRow, VersionRow, is_open

NUM_RECENT = 40
"""Versions in a sparkline."""
_RECENT = (
    select(
        VersionRow.step,
        VersionRow.created_at,
        VersionRow.metrics["reward"].as_float(),
        VersionRow.metrics["sft/loss"].as_float(),
    )
    .where(VersionRow.model_id == bindparam("model_id"), VersionRow.deleted_at.is_(None))
    .order_by(VersionRow.step.desc())
    .limit(NUM_RECENT)
)


@dataclass(frozen=True)
class Recent:
    """A version in a sparkline. A metric that its kind of job doesn't have is None."""

    step: int
    created_at: datetime
    reward: float | None
    loss: float | None


@dataclass(frozen=True)
class EndedJob:
    id: str
    state: str
    error: str | None
    ended_at: datetime | None


@dataclass
class ModelState:
    recent: list[Recent] = field(default_factory=list)
    """In order of steps."""
    num_queued: int = 0
    num_running: int = 0
    last_ended: EndedJob | None = None


class Overview:
    def __init__(self, database: Database):
        self._database = database

    def states(self, model_ids: Sequence[str]) -> dict[str, ModelState]:
        """Return the state of each of these models."""
        states = {model_id: ModelState() for model_id in model_ids}
        with self._database.quick_read() as connection:
            for model_id, state in states.items():  # each query reads one end of an index
                rows = [Recent(*row) for row in connection.execute(_RECENT, {"model_id": model_id})]
                state.recent = rows[::-1]
            open_numbers = _note_open_jobs(connection, states)
            _note_ended_jobs(connection, states, open_numbers)
        return states


def _note_open_jobs(connection: Connection, states: dict[str, ModelState]) -> list[int]:
    query = select(JobRow.model_id, JobRow.state, JobRow.number).where(JobRow.model_id.in_(list(states)), is_open())
    numbers = []
    for model_id, job_state, number in connection.execute(query):
        numbers.append(number)
        if job_state == "running":
            states[model_id].num_running += 1
        else:
            states[model_id].num_queued += 1
    return numbers


def _note_ended_jobs(connection: Connection, states: dict[str, ModelState], open_numbers: Sequence[int]) -> None:
    newest = (
        select(func.max(JobRow.number))
        .where(JobRow.model_id.in_(list(states)), JobRow.number.not_in(open_numbers))
        .group_by(JobRow.model_id)
    )
    query = select(JobRow.model_id, JobRow.id, JobRow.state, JobRow.error, JobRow.ended_at)
    for model_id, job_id, state, error, ended_at in connection.execute(query.where(JobRow.number.in_(newest))):
        states[model_id].last_ended = EndedJob(job_id, state, error, ended_at)
