"""Spans of requests and jobs. While tracing is off, they cost nothing and no library of OpenTelemetry is loaded.

A span's place in a trace travels with the ids (`tandem.cluster.telemetry.context`), as W3C's traceparent, so that spans
of other processes are below it. The trace of a job follows from the job's id: any process can add to it.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tandem.cluster.telemetry.context import TRACEPARENT, current_ids, logged_with

if TYPE_CHECKING:
    from tandem.cluster.config.observability import TracingConfig

Attribute = str | int | float | bool
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
SAMPLED = 1


class Span(Protocol):
    """A span that has begun."""

    def note(self, **attributes: Attribute) -> None:
        """Add attributes."""

    def rename(self, name: str) -> None:
        """Give the span a name that is known only now."""

    def fail(self, why: str) -> None:
        """Mark the span as one of a failure."""


class Spans(Protocol):
    """The library behind this module, once tracing is on."""

    def is_sampled(self, trace_id: int) -> bool:
        """Return whether a trace that begins here is sent."""

    def begin(self, name: str, parent: str | None, is_server: bool, attributes: Mapping[str, Attribute]) -> OpenSpan:
        """Begin a span below the parent."""

    def record(self, span: PastSpan) -> None:
        """Send a span that has ended."""

    def flush(self, timeout_s: float) -> None:
        """Send what is waiting."""


class OpenSpan(Span, Protocol):
    @property
    def traceparent(self) -> str: ...
    def end(self, error: BaseException | None) -> None: ...


@dataclass(frozen=True)
class PastSpan:
    """A span that is recorded at its end. Times are in seconds since 1970."""

    name: str
    begin: float
    end: float
    parent: str | None
    attributes: Mapping[str, Attribute]
    links: Sequence[str] = ()
    """Traceparents of other traces."""
    own: str | None = None
    """The traceparent that the span itself has; None for a new one."""
    error: str | None = None


class _NoSpan:
    def note(self, **attributes: Attribute) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def fail(self, why: str) -> None:
        pass


_NO_SPAN = _NoSpan()
_starting = threading.Lock()
_spans: Spans | None = None


def start_tracing(settings: TracingConfig | None, about: Mapping[str, Attribute]) -> None:
    """Trace this process from now on, if there are settings. `about` are facts of the process. Repeats do nothing."""
    global _spans
    if settings is None or _spans is not None:
        return
    with _starting:
        if _spans is None:
            from tandem.cluster.telemetry.otlp import OtlpSpans

            _spans = OtlpSpans(settings, about)


def stop_tracing(timeout_s: float = 2.0) -> None:
    """Send what is waiting, and trace no more."""
    global _spans
    if _spans is not None:
        spans, _spans = _spans, None
        spans.flush(timeout_s)


def is_tracing() -> bool:
    return _spans is not None


@contextmanager
def span(name: str, is_server: bool = False, **attributes: Attribute) -> Iterator[Span]:
    """Record the block as a span below that of the current ids. An exception marks it as failed."""
    if _spans is None:
        yield _NO_SPAN
        return
    ids = current_ids()
    parent = ids.pop(TRACEPARENT, None)
    known = {f"tandem.{key}": value for key, value in ids.items()}
    opened = _spans.begin(name, None if parent is None else str(parent), is_server, {**known, **attributes})
    try:
        with logged_with(**{TRACEPARENT: opened.traceparent}):
            yield opened
    except BaseException as error:
        opened.end(error)
        raise
    opened.end(None)


def record_span(past: PastSpan) -> None:
    """Record a span that has ended."""
    if _spans is not None:
        _spans.record(past)


def valid_traceparent(text: str | None) -> str | None:
    """Return a traceparent that a client sent, None if it isn't one."""
    return text if text is not None and _TRACEPARENT.fullmatch(text) else None


def job_traceparent(job_id: str) -> str | None:
    """Return the place of a job's own span, below which all other spans of the job are. None while tracing is off."""
    if _spans is None:
        return None
    digest = hashlib.sha256(job_id.encode()).hexdigest()
    flags = SAMPLED if _spans.is_sampled(int(digest[:32], 16)) else 0
    return f"00-{digest[:32]}-{digest[32:48]}-{flags:02x}"
