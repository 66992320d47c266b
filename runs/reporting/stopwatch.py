"""Measure when something ran, and how much of a time span it covers."""

from __future__ import annotations

import time


class Stopwatch:
    """start(), stop(), start() ...; then overlap(began, ended), in seconds of `time.monotonic`."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._began: float | None = None

    def start(self) -> None:
        self._began = time.monotonic()

    def stop(self) -> None:
        """Stop if it is running."""
        if self._began is not None:
            self._spans.append((self._began, time.monotonic()))
            self._began = None

    def overlap(self, began: float, ended: float) -> float:
        """Return for how many of the seconds from `began` to `ended` it ran."""
        spans = self._spans if self._began is None else [*self._spans, (self._began, time.monotonic())]
        return sum(max(0.0, min(ended, until) - max(began, since)) for since, until in spans)
