"""Spans through the SDK of OpenTelemetry to a collector, in the background.

A collector that is slow or broken costs nothing but spans: those beyond the queue, and those that it doesn't take, are
dropped and counted, with one warning.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tandem import __version__
from tandem.cluster.config.observability import TracingConfig
from tandem.cluster.telemetry.redaction import without_secrets
from tandem.cluster.telemetry.tracing import Attribute, PastSpan

logger = logging.getLogger(__name__)
BATCH = 512
DELAY_MS = 1000


class _Dropped:
    """Counts the spans that never arrive. The first ones are logged."""

    def __init__(self, endpoint: str):
        self._endpoint, self._lock = without_secrets(endpoint), threading.Lock()
        self.count = 0

    def add(self, number: int, why: str) -> None:
        with self._lock:
            is_first, self.count = self.count == 0, self.count + number
        if is_first:
            logger.warning(
                "%d spans were dropped: %s. The collector is %s (tracing.endpoint). Further ones are dropped without a "
                "line; nothing else is affected.",
                number,
                why,
                self._endpoint,
            )


class _Exporter(SpanExporter):
    """The OTLP exporter, which never raises."""

    def __init__(self, exporter: SpanExporter, dropped: _Dropped):
        self._exporter, self._dropped = exporter, dropped

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._dropped.add(len(spans), f"the collector failed with {type(error).__name__}")
            return SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._dropped.add(len(spans), "the collector didn't take them")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


class _Processor(BatchSpanProcessor):
    """Counts the spans for which the queue has no room."""

    def __init__(self, exporter: SpanExporter, max_queue: int, dropped: _Dropped):
        super().__init__(
            exporter,
            max_queue_size=max_queue,
            max_export_batch_size=min(BATCH, max_queue),
            schedule_delay_millis=DELAY_MS,
        )
        self._max_queue, self._dropped = max_queue, dropped

    def on_end(self, span: ReadableSpan) -> None:
        if len(self._batch_processor._queue) >= self._max_queue:
            self._dropped.add(1, f"{self._max_queue} others waited for the collector already")
            return
        super().on_end(span)


class _Ids(RandomIdGenerator):
    """Random ids, or those that `chosen` has for the span that this thread starts."""

    def __init__(self) -> None:
        self.chosen = threading.local()

    def generate_span_id(self) -> int:
        id: int | None = getattr(self.chosen, "span_id", None)
        return super().generate_span_id() if id is None else id

    def generate_trace_id(self) -> int:
        id: int | None = getattr(self.chosen, "trace_id", None)
        return super().generate_trace_id() if id is None else id


class _OpenSpan:
    def __init__(self, span: trace.Span):
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def note(self, **attributes: Attribute) -> None:
        self._span.set_attributes(_safe(attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, why: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR, without_secrets(why)))

    def end(self, error: BaseException | None) -> None:
        if error is not None:
            self.fail(f"{type(error).__name__}: {error}")
        self._span.end()


class OtlpSpans:
    """See `tandem.cluster.telemetry.tracing.Spans`."""

    def __init__(self, settings: TracingConfig, about: Mapping[str, Attribute]):
        # The SDK's own lines would repeat for each batch.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._sampler = TraceIdRatioBased(settings.sample_ratio)
        self._ids = _Ids()
        facts = {f"tandem.{name}": value for name, value in about.items() if name != "process"}
        name = f"tandem-{about.get('process', 'service')}"
        self._provider = TracerProvider(
            sampler=ParentBased(self._sampler),
            resource=Resource.create({"service.name": name, "service.version": __version__, **facts}),
            id_generator=self._ids,
            shutdown_on_exit=False,  # an interpreter that exits doesn't wait for a collector
        )
        self._dropped = _Dropped(settings.endpoint)
        exporter = OTLPSpanExporter(settings.endpoint, headers=settings.headers, timeout=settings.timeout_s)
        processor = _Processor(_Exporter(exporter, self._dropped), settings.max_queue, self._dropped)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tandem", __version__)

    @property
    def num_dropped(self) -> int:
        return self._dropped.count

    def is_sampled(self, trace_id: int) -> bool:
        decision = self._sampler.should_sample(None, trace_id, "job").decision
        return decision is Decision.RECORD_AND_SAMPLE

    def begin(self, name: str, parent: str | None, is_server: bool, attributes: Mapping[str, Attribute]) -> _OpenSpan:
        kind = SpanKind.SERVER if is_server else SpanKind.INTERNAL
        # An empty context, not None: no other library's span is a parent of ours.
        return _OpenSpan(self._tracer.start_span(name, _below(parent), kind, _safe(attributes)))

    def record(self, past: PastSpan) -> None:
        own = _context(past.own) if past.own else None
        if own is not None and not own.trace_flags & TraceFlags.SAMPLED:
            return
        links = [Link(context) for text in past.links if (context := _context(text))]
        if own is not None:
            self._ids.chosen.trace_id, self._ids.chosen.span_id = own.trace_id, own.span_id
        try:
            span = self._tracer.start_span(
                past.name, _below(past.parent), SpanKind.INTERNAL, _safe(past.attributes), links, _ns(past.begin)
            )
        finally:
            self._ids.chosen.trace_id = self._ids.chosen.span_id = None
        if past.error:
            span.set_status(Status(StatusCode.ERROR, without_secrets(past.error)))
        span.end(_ns(max(past.begin, past.end)))

    def flush(self, timeout_s: float) -> None:
        flushing = threading.Thread(target=self._provider.shutdown, name="flush-spans", daemon=True)
        flushing.start()
        flushing.join(timeout_s)


def _context(traceparent: str) -> SpanContext:
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _below(traceparent: str | None) -> Context:
    return trace.set_span_in_context(
        NonRecordingSpan(_context(traceparent)) if traceparent else trace.INVALID_SPAN, Context()
    )


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _safe(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {name: without_secrets(value) if isinstance(value, str) else value for name, value in attributes.items()}
