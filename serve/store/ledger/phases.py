"""The phases of training jobs: recorded by the coordinator, charged to the ledger, and read by the API."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from tandem.cluster.jobs.job import ClaimedJob
from tandem.cluster.jobs.phases import AMOUNTS, Outcome, Phase
from tandem.serve.store.database import Database
from tandem.serve.store.ledger.amounts import Account, Amounts, add_amounts
from tandem.serve.store.tables.training import JobRow, ModelRow
from tandem.serve.store.tables.usage import AttemptRow, PhaseRow


@dataclass(frozen=True)
class RecordedAttempt:
    """An attempt with its phases in order."""

    attempt: int
    outcome: str | None
    claimed_at: datetime
    phases: Sequence[PhaseRow]


class JobPhases:
    def __init__(self, database: Database):
        self._database = database

    def record(self, job: ClaimedJob, phases: Sequence[Phase], outcome: Outcome | None) -> None:
        """Replace the phases of an attempt, and charge to its model what is new. See `JobStore.record_phases`."""
        if not phases:
            return
        now = self._database.now()
        with self._database.write() as session:
            # The job's row orders two records of one attempt.
            row = session.scalars(select(JobRow).where(JobRow.id == job.id).with_for_update()).one()
            attempt = session.get(AttemptRow, (job.id, job.attempt))
            if attempt is None:
                attempt = add_attempt(session, job.id, job.attempt, now)  # claimed by the previous release
            attempt.outcome, attempt.recorded_at = outcome or attempt.outcome, now
            session.flush()
            model = session.scalars(select(ModelRow).where(ModelRow.id == row.model_id)).one()
            new = _replace(session, job, phases)
            accounts = {
                name: Account(
                    entity=model.entity,
                    base_model=model.base_model,
                    model_id=model.id,
                    step=job.next_step,
                    key_id=row.api_key_id or "",
                    job_id=job.id,
                    phase=name,
                )
                for name in new
            }
            add_amounts(session, now, [(accounts[name], amounts) for name, amounts in new.items()])

    def of_job(self, job_id: str) -> list[RecordedAttempt]:
        """Return the attempts of a job in order."""
        return self.of_jobs([job_id]).get(job_id, [])

    def of_jobs(self, job_ids: Sequence[str]) -> dict[str, list[RecordedAttempt]]:
        """Return the attempts of each job in order."""
        phases: dict[tuple[str, int], list[PhaseRow]] = defaultdict(list)
        found: dict[str, list[RecordedAttempt]] = defaultdict(list)
        of_jobs = select(PhaseRow).where(PhaseRow.job_id.in_(job_ids)).order_by(PhaseRow.seq)
        attempts = select(AttemptRow).where(AttemptRow.job_id.in_(job_ids)).order_by(AttemptRow.attempt)
        with self._database.read() as session:
            for phase in session.scalars(of_jobs):
                phases[phase.job_id, phase.attempt].append(phase)
            for row in session.scalars(attempts):
                own = phases[row.job_id, row.attempt]
                found[row.job_id].append(RecordedAttempt(row.attempt, row.outcome, row.claimed_at, own))
        return found


def add_attempt(session: Session, job_id: str, attempt: int, now: datetime) -> AttemptRow:
    """Add the row of an attempt that begins, and return it."""
    row = AttemptRow(job_id=job_id, attempt=attempt, claimed_at=now, recorded_at=now)
    session.add(row)
    return row


def _replace(session: Session, job: ClaimedJob, phases: Sequence[Phase]) -> Mapping[str, Amounts]:
    """Write the phases that have changed. Return the new amounts by phase; none for a record that came too late."""
    of_attempt = PhaseRow.job_id == job.id, PhaseRow.attempt == job.attempt
    known = {row.seq: row for row in session.scalars(select(PhaseRow).where(*of_attempt))}
    if sum(row.seconds for row in known.values()) > sum(phase.seconds for phase in phases):
        return {}
    new: dict[str, Amounts] = defaultdict(Amounts)
    for seq, phase in enumerate(phases):
        row = known.get(seq)
        before = {name: getattr(row, name) if row else 0 for name in AMOUNTS}
        added = {name: getattr(phase, name) - before[name] for name in AMOUNTS}
        if row is not None and not any(added.values()):
            continue
        new[phase.name] += Amounts(**added)
        if row is None:
            row = PhaseRow(job_id=job.id, attempt=job.attempt, seq=seq)
            session.add(row)
        row.name, row.reason = phase.name, phase.reason
        row.began_at, row.ended_at = _time(phase.began_at), _time(phase.ended_at)
        for name in AMOUNTS:
            setattr(row, name, getattr(phase, name))
    return new


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
