"""The longest times without an event of any open job, and without an answered rollout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from outcome import Job


def longest_silence(jobs: Sequence[Job], began: float, ended: float) -> float:
    """Return the longest time in seconds without an event while some job was open.

    Only times that overlap with [began, ended] count. Gradient steps that are repeated after an interruption make no
    events, so they count as silence.
    """
    events = sorted(event.at for job in jobs for event in job.events)
    longest = 0.0
    for start, end in _busy_times([(job.created_at, job.ended_at or ended) for job in jobs]):
        heard = [start, *(at for at in events if start <= at <= end), end]
        longest = max([longest, *(b - a for a, b in pairwise(heard) if a <= ended and b >= began)])
    return longest


def longest_outage(answered_at: Iterable[float], began: float, ended: float) -> float:
    """Return the longest time in seconds, overlapping with [began, ended], without an answered rollout."""
    times = sorted(answered_at)
    return max((b - a for a, b in pairwise(times) if a <= ended and b >= began), default=ended - began)


def _busy_times(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the union of the spans as disjoint spans."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged
