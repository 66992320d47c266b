"""The metrics of a base model's jobs: phases, ends, failures, tokens and publications."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from tandem.cluster.metrics.recording import count, observe

if TYPE_CHECKING:
    from tandem.cluster.jobs.job import ClaimedJob
    from tandem.cluster.jobs.phases import Phase

FINAL = ("succeeded", "failed", "cancelled")
MAX_RECENT = 100
"""Publications whose seconds are kept for the page."""


class JobMetrics:
    """Counts for one base model. It is a listener of the phases of jobs. Thread-safe."""

    def __init__(self, base_model: str):
        self._base = base_model
        self._recent: deque[float] = deque(maxlen=MAX_RECENT)
        self._lock = threading.Lock()

    def phase_ended(self, job: ClaimedJob, phase: Phase) -> None:
        """See `PhaseListener`."""
        observe("tandem_phase_seconds", phase.seconds, base_model=self._base, phase=phase.name)
        count("tandem_phase_time_seconds_total", phase.seconds, base_model=self._base, phase=phase.name)

    def trained(self, num_tokens: float) -> None:
        count("tandem_tokens_trained_total", num_tokens, base_model=self._base)

    def published(self, seconds: float) -> None:
        observe("tandem_publish_seconds", seconds, base_model=self._base)
        with self._lock:
            self._recent.append(seconds)

    def ended(self, outcome: str) -> None:
        """Count an attempt that ended its job. Others, such as one that is handed back, change nothing."""
        if outcome in FINAL:
            count("tandem_jobs_ended_total", base_model=self._base, state=outcome)

    def failed(self, stage: str, code: str) -> None:
        count("tandem_job_failures_total", base_model=self._base, stage=stage, code=code)

    def lost_lease(self) -> None:
        count("tandem_lease_losses_total", base_model=self._base)

    @property
    def recent_publications(self) -> list[float]:
        """Seconds, the oldest first."""
        with self._lock:
            return list(self._recent)
