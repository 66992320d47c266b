"""The place of a job in the queue of its base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from tandem.serve.errors import NotFoundError
from tandem.serve.store.database import Database
from tandem.serve.store.tables.training import InitialVersionRow, JobRow, ModelRow, is_open

MAX_NAMED = 100


@dataclass(frozen=True)
class QueuePlace:
    """What stands between a job and its start."""

    job: JobRow
    model: ModelRow
    before_in_model: Sequence[JobRow]
    """The open jobs of the same model that were accepted before, in order. They run one at a time."""
    own_before: Sequence[str]
    """The ids of the entity's queued jobs that are claimed before it, at most MAX_NAMED, in order of acceptance."""
    num_own_before: int
    num_others_before: int
    """The number of other entities' queued jobs that are claimed before it."""
    is_base_ready: bool
    """Version 0 of the base model is recorded: its coordinator has started once."""


class Queue:
    """For a caller, jobs on models of other entities don't exist, except for their number."""

    def __init__(self, database: Database):
        self._database = database

    def place(self, job_id: str, entity: str) -> QueuePlace:
        """Return the place of a job. Raises NotFoundError."""
        with self._database.read() as session:
            query = select(JobRow, ModelRow).join(JobRow.model).where(JobRow.id == job_id, ModelRow.entity == entity)
            found = session.execute(query).first()
            if found is None:
                raise NotFoundError(
                    f"There is no training job {job_id}: the id is wrong, or it belongs to another entity.",
                    "training_job_not_found",
                    "training_job_id",
                )
            job, model = found
            in_model = select(JobRow).where(JobRow.model_id == model.id, is_open(), JobRow.number < job.number)
            before = session.scalars(in_model.order_by(JobRow.number)).all()
            claimed = _claimed_before(session, job, model) if job.state == "queued" else []
            is_base_ready = session.get(InitialVersionRow, model.base_model) is not None
        own = sorted(number_id for number_id, of in claimed if of == entity)
        return QueuePlace(
            job=job,
            model=model,
            before_in_model=before,
            own_before=[id for _, id in own[:MAX_NAMED]],
            num_own_before=len(own),
            num_others_before=len(claimed) - len(own),
            is_base_ready=is_base_ready,
        )


def _claimed_before(session: Session, job: JobRow, model: ModelRow) -> list[tuple[tuple[int, str], str]]:
    """Return number, id and entity of the queued jobs of the base model that are claimed before this one.

    A claim takes the oldest job of the model whose last claim is the oldest (`Claims.claim_next`), and makes that model
    the last. So while k jobs of this model are claimed, each other model gets as many turns, and one more before the
    job itself if its last claim is older.
    """
    query = (
        select(JobRow.number, JobRow.id, ModelRow.id, ModelRow.entity, ModelRow.last_claimed_at)
        .join_from(JobRow, ModelRow, JobRow.model_id == ModelRow.id)
        .where(ModelRow.base_model == model.base_model, is_open(), JobRow.state == "queued")
        .order_by(JobRow.number)
    )
    rows = session.execute(query).all()
    first_of: dict[str, int] = {}
    for number, _, of_model, _, _ in rows:
        first_of.setdefault(of_model, number)
    own_turn = (model.last_claimed_at, first_of.get(model.id, job.number))
    num_before = sum(of_model == model.id and number < job.number for number, _, of_model, _, _ in rows)
    taken: dict[str, int] = {}
    claimed: list[tuple[tuple[int, str], str]] = []
    for number, id, of_model, entity, last_claimed_at in rows:
        is_earlier = (last_claimed_at, first_of[of_model]) < own_turn
        turns = num_before + (is_earlier and of_model != model.id)
        if taken.setdefault(of_model, 0) < turns and id != job.id:
            taken[of_model] += 1
            claimed.append(((number, id), entity))
    return claimed
