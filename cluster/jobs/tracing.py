"""The trace of a training job: from its acceptance to its version, with a link to the request that posted it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tandem.cluster.jobs.job import ClaimedJob
from tandem.cluster.jobs.phases import IDLE, LEAST_S, Outcome, Phase
from tandem.cluster.telemetry.context import TRACEPARENT, current_ids, logged_with
from tandem.cluster.telemetry.tracing import (
    Attribute,
    PastSpan,
    is_tracing,
    job_traceparent,
    record_span,
    span,
)


@contextmanager
def traced(job: ClaimedJob) -> Iterator[None]:
    """Give lines and spans of the block the job's ids, and record the attempt and the wait before it."""
    root = job_traceparent(job.id)
    with logged_with(
        job_id=job.id,
        attempt=job.attempt,
        model_id=job.model_id,
        request_id=job.request_id,
        **{TRACEPARENT: root},
    ):
        if root is not None and job.attempt == 1 and job.accepted_at is not None:
            record_span(PastSpan("queued", job.accepted_at, time.time(), root, _about(job)))
        with span("attempt", attempt=job.attempt):
            yield


class TracedPhases:
    """A PhaseListener: records each phase as a span below the attempt's."""

    def phase_ended(self, job: ClaimedJob, phase: Phase) -> None:
        parent = current_ids().get(TRACEPARENT)
        is_long = phase.ended_at - phase.began_at >= LEAST_S
        # Idle time lies between the other phases: from its first moment to its last, it would cover them.
        if is_tracing() and parent is not None and is_long and phase.name != IDLE:
            about = {"tandem.seconds": phase.seconds, "tandem.learner_seconds": phase.learner_seconds}
            reason = {"tandem.reason": phase.reason} if phase.reason else {}
            record_span(PastSpan(phase.name, phase.began_at, phase.ended_at, str(parent), {**about, **reason}))


def record_end(job: ClaimedJob, outcome: Outcome, error: str | None = None) -> None:
    """Record the span of the whole job, unless it continues with another attempt."""
    root = job_traceparent(job.id)
    if root is not None and outcome in ("succeeded", "failed", "cancelled"):
        now = time.time()
        links = [job.traceparent] if job.traceparent else []
        about = {**_about(job), "tandem.state": outcome}
        record_span(PastSpan("training job", job.accepted_at or now, now, None, about, links, root, error))


def _about(job: ClaimedJob) -> dict[str, Attribute]:
    about: dict[str, Attribute] = {
        "tandem.job_id": job.id,
        "tandem.model_id": job.model_id,
        "tandem.policy": job.policy,
        "tandem.kind": job.kind,
        "tandem.step": job.next_step,
    }
    return about | ({"tandem.request_id": job.request_id} if job.request_id else {})
