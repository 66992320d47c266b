"""The metrics of the queue, read from the store every few seconds by the coordinator."""

from __future__ import annotations

from collections.abc import Sequence

from tandem.cluster.metrics.recording import set_gauge
from tandem.serve.store.training.live_state import LiveState

STATES = ("queued", "running")


class QueueMetrics:
    """Sets the gauges of open jobs: `sample_often(QueueMetrics(store.live_state, base_models).sample)`."""

    def __init__(self, live_state: LiveState, base_models: Sequence[str]):
        self._live_state, self._base_models = live_state, base_models

    def sample(self) -> None:
        open_jobs = {(jobs.base_model, jobs.state): jobs for jobs in self._live_state.open_jobs()}
        now = self._live_state.now()
        for base in self._base_models:
            for state in STATES:
                jobs = open_jobs.get((base, state))
                set_gauge("tandem_jobs", jobs.count if jobs else 0, base_model=base, state=state)
            head = open_jobs.get((base, "queued"))
            age_s = max(0.0, (now - head.oldest).total_seconds()) if head else 0.0
            set_gauge("tandem_queue_head_age_seconds", age_s, base_model=base)
