"""What the executions of all runs of a base model share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.calls.call import CallStore
from tandem.cluster.calls.call_metrics import CallMetrics
from tandem.cluster.config import CoordinatorConfig, TinkerConfig
from tandem.cluster.jobs.engine_sleep import EnginesAsleep

if TYPE_CHECKING:
    from tandem.cluster.jobs.engine_agreement import EngineAgreement
    from tandem.cluster.learners.group import LearnerGroup


@dataclass(frozen=True)
class CallParts:
    store: CallStore
    learners: LearnerGroup
    artifacts: Artifacts
    settings: CoordinatorConfig
    limits: TinkerConfig
    counted: CallMetrics
    agreement: EngineAgreement | None = None
    """Without it, engines load a version with its first request."""
    asleep: EnginesAsleep | None = None
    """With it, engines sleep while the learners work."""
