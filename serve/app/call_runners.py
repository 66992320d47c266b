"""The runners of calls, one for each base model, which the coordinator has beside those of jobs."""

from __future__ import annotations

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.calls.call_metrics import CallMetrics
from tandem.cluster.calls.parts import CallParts
from tandem.cluster.calls.patient_store import PatientCallStore
from tandem.cluster.calls.runner import CallRunner
from tandem.cluster.config import TandemConfig
from tandem.cluster.jobs.stages import JobStages
from tandem.serve.store.store import Store
from tandem.serve.tinker.store.store import TinkerStore


def call_runners(
    config: TandemConfig, store: Store, artifacts: Artifacts, stages: dict[str, JobStages]
) -> dict[str, CallRunner]:
    """Return a runner for each base model, which works on the learners that its jobs use."""
    claims = PatientCallStore(TinkerStore(store.database, config.tinker).claims, config.deadlines.publish_s)
    return {
        name: CallRunner(
            name,
            CallParts(
                claims,
                own.learners,
                artifacts,
                config.coordinator,
                config.tinker,
                CallMetrics(name),
                own.agreement,
                own.asleep,
            ),
        )
        for name, own in stages.items()
    }
