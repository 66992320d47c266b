"""Records metrics through Ray, whose agent on each node collects those of all processes there.

    count("tandem_tokens_trained_total", 512, base_model="tandem/tiny")

Outside Ray's processes, nothing happens. Recording takes microseconds and never raises: a fault in a metric must not
fail a job or a request.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from tandem.cluster.metrics.catalogue import METRICS, Metric

logger = logging.getLogger(__name__)
REFRESH_S = 4.0
"""Ray forgets a gauge that isn't set between two of its reports, which are 10 s apart by default."""
Labels = Mapping[str, str]


class Recorder(Protocol):
    """Where measurements go."""

    def record(self, metric: Metric, value: float, labels: Labels) -> None:
        """Add to a counter, set a gauge, or observe a value of a histogram."""


class RayRecorder:
    """Records into Ray's metrics of this process."""

    def __init__(self) -> None:
        self._instruments: dict[str, Any] = {}
        self._lock = threading.Lock()

    def record(self, metric: Metric, value: float, labels: Labels) -> None:
        if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
            return
        instrument = self._instrument(metric)
        if metric.kind == "counter":
            instrument.inc(value, tags=dict(labels))
        elif metric.kind == "gauge":
            instrument.set(value, tags=dict(labels))
        else:
            instrument.observe(value, tags=dict(labels))

    def _instrument(self, metric: Metric) -> Any:
        with self._lock:
            if metric.name not in self._instruments:
                from ray.util import metrics

                if metric.kind == "histogram":
                    made: Any = metrics.Histogram(metric.name, metric.description, list(metric.buckets), metric.labels)
                else:
                    kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
                    made = kind(metric.name, metric.description, metric.labels)
                self._instruments[metric.name] = made
            return self._instruments[metric.name]


class _Gauges:
    """The values of this process's gauges, which a thread records again before Ray forgets them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._samplers: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None

    def set(self, name: str, value: float, labels: Labels) -> None:
        with self._lock:
            self._values[name, tuple(labels.items())] = value
            self._start()

    def forget(self, name: str, labels: Labels) -> None:
        with self._lock:
            self._values.pop((name, tuple(labels.items())), None)

    def sample(self, sampler: Callable[[], None]) -> None:
        with self._lock:
            self._samplers.append(sampler)
            self._start()

    def _start(self) -> None:
        if self._thread is None and "ray" in sys.modules:
            self._thread = threading.Thread(target=self._refresh, name="metrics", daemon=True)
            self._thread.start()

    def _refresh(self) -> None:
        pause = threading.Event()
        while True:
            with self._lock:
                samplers = list(self._samplers)
            for sampler in samplers:
                try:
                    sampler()
                except Exception:  # a store or an engine that doesn't answer now
                    logger.debug("A metric couldn't be sampled", exc_info=True)
            with self._lock:
                values = dict(self._values)
            for (name, labels), value in values.items():
                _record(name, value, dict(labels))
            pause.wait(REFRESH_S)


_recorder: Recorder = RayRecorder()
_gauges = _Gauges()
_faulty: set[str] = set()


def count(name: str, value: float = 1.0, /, **labels: str) -> None:
    """Add to a counter. Zero changes nothing."""
    if value > 0:
        _record(name, value, labels)


def observe(name: str, value: float, /, **labels: str) -> None:
    """Count a value in a histogram."""
    _record(name, value, labels)


def set_gauge(name: str, value: float, /, **labels: str) -> None:
    """Set a gauge, until it is set again or forgotten, or this process ends."""
    _gauges.set(name, value, labels)
    _record(name, value, labels)


def forget_gauge(name: str, /, **labels: str) -> None:
    """Stop reporting a gauge."""
    _gauges.forget(name, labels)


def sample_often(sampler: Callable[[], None]) -> None:
    """Call `sampler`, which sets gauges, every few seconds in a thread while this process runs."""
    _gauges.sample(sampler)


@contextmanager
def recording_into(recorder: Recorder) -> Iterator[None]:
    """In the block, send this process's measurements to another recorder."""
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before


def _record(name: str, value: float, labels: Labels) -> None:
    try:
        metric = METRICS[name]
        if set(labels) != set(metric.labels):
            raise ValueError(f"{name} has labels {', '.join(metric.labels)}, not {', '.join(labels)}.")
        _recorder.record(metric, float(value), labels)
    except Exception:
        if name not in _faulty:
            _faulty.add(name)
            logger.exception("The metric %s can't be recorded", name)
