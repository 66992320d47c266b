"""Where the time of a job went, from its acceptance to its end: the recorded phases, and the waits between attempts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tandem.cluster.jobs.phases import AMOUNTS, IDLE
from tandem.serve.store.ledger.phases import RecordedAttempt
from tandem.serve.store.tables.training import JobRow
from tandem.serve.store.tables.usage import PhaseRow

GIVEN_BACK = {
    "handed_back": "the service was stopped, and the job was handed back",
    "requeued": "the attempt before failed and is repeated",
}


@dataclass(frozen=True)
class Stretch:
    """A stretch of a job's time in one phase."""

    name: str
    began_at: datetime
    ended_at: datetime
    seconds: float
    """Fewer than the stretch spans if many short phases of this name were put together."""
    reason: str | None = None
    attempt: int | None = None
    is_running: bool = False
    """It still goes on."""
    learner_seconds: float = 0.0
    cpu_seconds: float = 0.0
    trained_tokens: int = 0
    scored_tokens: int = 0
    engine_scored_tokens: int = 0


def timeline(job: JobRow, attempts: Sequence[RecordedAttempt], now: datetime) -> list[Stretch]:
    """Return the stretches of a job in order, without gaps, up to its end or now."""
    end = job.ended_at or now
    return [stretch for stretch in _stretches(job, attempts, end, now) if stretch.seconds > 0]


def _stretches(job: JobRow, attempts: Sequence[RecordedAttempt], end: datetime, now: datetime) -> Iterator[Stretch]:
    at, last, gap = job.created_at, None, ("queued", "it waits for its turn")
    for attempt in attempts:
        began = max(at, attempt.claimed_at)
        yield _wait(*gap, at, min(began, end))
        at, last = began, None
        for row in attempt.phases:
            yield _wait(IDLE, "after the claim", at, min(row.began_at, end), attempt.attempt)
            if last is not None:
                yield last
            last = _recorded(row, attempt.attempt, end)
            at = max(at, last.ended_at)
        if attempt is not attempts[-1]:
            if last is not None:
                yield last
            gap = _gap_after(attempt)
    if attempts:
        yield from _to_the_end(job, attempts[-1], last, at, end, now)
    elif job.started_at is None:
        yield _wait(*gap, at, end)
    else:
        yield _wait(*gap, at, min(job.started_at, end))
        yield _wait(IDLE, "no phases were recorded", min(job.started_at, end), end)


def _to_the_end(
    job: JobRow, attempt: RecordedAttempt, last: Stretch | None, at: datetime, end: datetime, now: datetime
) -> Iterator[Stretch]:
    """Yield the last recorded stretch and the time after it."""
    is_held = job.state == "running" and job.lease_expires_at > now
    if job.state == "queued" or attempt.outcome in GIVEN_BACK:
        if last is not None:
            yield last
        yield _wait(*_gap_after(attempt), at, end)
    elif job.state == "running" and not is_held:
        if last is not None:
            yield last
        yield _wait("wait_lease", _gap_after(attempt)[1], at, end, attempt.attempt)
    elif last is None:
        yield replace(_wait(IDLE, "after the claim", at, end, attempt.attempt), is_running=is_held)
    else:  # it goes on since it was recorded
        more_s = max(0.0, (end - at).total_seconds())
        yield replace(last, ended_at=max(at, end), seconds=last.seconds + more_s, is_running=is_held)


def _gap_after(attempt: RecordedAttempt) -> tuple[str, str]:
    """Return the phase after an attempt that didn't end the job, and the reason."""
    if reason := GIVEN_BACK.get(attempt.outcome or ""):
        return "queued", reason
    return "wait_lease", f"the process of attempt {attempt.attempt} ended, or lost the store"


def _wait(name: str, reason: str, began: datetime, ended: datetime, attempt: int | None = None) -> Stretch:
    return Stretch(name, began, ended, (ended - began).total_seconds(), reason, attempt)


def _recorded(row: PhaseRow, attempt: int, end: datetime) -> Stretch:
    beyond_s = max(0.0, (row.ended_at - end).total_seconds())  # recording the job's end isn't part of it
    amounts = {name: getattr(row, name) for name in AMOUNTS}
    amounts["seconds"] = max(0.0, row.seconds - beyond_s)
    return Stretch(row.name, row.began_at, min(row.ended_at, end), reason=row.reason, attempt=attempt, **amounts)
