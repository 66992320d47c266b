"""How long nothing was heard: of jobs while there was work, and of rollouts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from outcome import Job


def longest_silence(jobs: Sequence[Job], began: float, ended: float) -> float:
    """The longest time in seconds, of those that overlap with [began, ended], in which some job waited or ran and no
    job had an event.

    Gradient steps that are done again after an interruption make no events, so they count as silence.
    """
    events = sorted(event.at for job in jobs for event in job.events)
    longest = 0.0
    for start, end in _busy_times([(job.created_at, job.ended_at or ended) for job in jobs]):
        heard = [start, *(at for at in events if start <= at <= end), end]
        longest = max([longest, *(b - a for a, b in pairwise(heard) if a <= ended and b >= began)])
    return longest


def longest_outage(answered_at: Iterable[float], began: float, ended: float) -> float:
    """The longest time in seconds, of those that overlap with [began, ended], without an answered rollout."""
    times = sorted(answered_at)
    return max((b - a for a, b in pairwise(times) if a <= ended and b >= began), default=ended - began)


def _busy_times(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The union of the spans, as spans that don't touch."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged
