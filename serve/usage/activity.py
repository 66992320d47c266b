"""When learner and rollouts worked, and when one waited for the other, in equal parts of a stretch of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tandem.serve.store.ledger.activity import ActivitySpans
from tandem.serve.usage.wire import ActivityBin

MAX_BINS = 500
STATES = ("both_work", "learner_works", "rollouts_run", "job_waits", "idle")


@dataclass(frozen=True)
class Span:
    began_at: datetime
    ended_at: datetime


def activity_bins(whole: Span, count: int, found: ActivitySpans) -> tuple[ActivityBin, list[ActivityBin]]:
    """Return the sums of the whole time, and of `count` equal parts."""
    width = (whole.ended_at - whole.began_at) / count
    edges = [whole.began_at + width * index for index in range(count)] + [whole.ended_at]
    spans = (*found.learner, *found.sampling, *found.jobs)
    inside = {at for span in spans for at in span if whole.began_at <= at <= whole.ended_at}
    changes = sorted(inside.union(edges))
    states = _states(changes, found)
    parts = [dict.fromkeys(STATES, timedelta()) for _ in range(count)]
    index = 0
    for began, ended, state in zip(changes, changes[1:], states, strict=False):
        while began >= edges[index + 1]:
            index += 1
        parts[index][state] += ended - began
    whole_sums = {state: sum((part[state] for part in parts), timedelta()) for state in STATES}
    bins = [_bin(edges[index], edges[index + 1], part) for index, part in enumerate(parts)]
    return _bin(whole.began_at, whole.ended_at, whole_sums), bins


def _states(changes: Sequence[datetime], found: ActivitySpans) -> list[str]:
    """Return the state after each change."""
    learner, sampling, jobs = (_covered(changes, spans) for spans in (found.learner, found.sampling, found.jobs))
    states = []
    for trains, samples, is_open in zip(learner, sampling, jobs, strict=True):
        if trains:
            states.append("both_work" if samples else "learner_works")
        elif samples:
            states.append("rollouts_run")
        else:
            states.append("job_waits" if is_open else "idle")
    return states


def _covered(changes: Sequence[datetime], spans: Iterable[tuple[datetime, datetime]]) -> list[bool]:
    """Return for each change whether a span covers the time after it."""
    steps: dict[datetime, int] = {}
    for began, ended in spans:
        if ended > began:
            steps[began] = steps.get(began, 0) + 1
            steps[ended] = steps.get(ended, 0) - 1
    covered, depth, rest = [], 0, sorted(steps.items())
    place = 0
    for at in changes:
        while place < len(rest) and rest[place][0] <= at:
            depth += rest[place][1]
            place += 1
        covered.append(depth > 0)
    return covered


def _bin(began: datetime, ended: datetime, states: dict[str, timedelta]) -> ActivityBin:
    return ActivityBin(began_at=began, ended_at=ended, **{name: time.total_seconds() for name, time in states.items()})
