"""When something ran, and how much of a time span that covers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """with stopwatch.running(): ...; then `stopwatch.overlap(began, ended)`, in seconds of `time.monotonic`."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._began: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._spans.append((self._began, time.monotonic()))
            self._began = None

    def overlap(self, began: float, ended: float) -> float:
        """How many of the seconds from `began` to `ended` it ran."""
        spans = self._spans if self._began is None else [*self._spans, (self._began, time.monotonic())]
        return sum(max(0.0, min(ended, until) - max(began, since)) for since, until in spans)
