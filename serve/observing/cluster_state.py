"""The live state of engines and learners, before the API has left out what a caller may not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict

if TYPE_CHECKING:
    from tandem.cluster.engine.metrics.engine_state import EngineState
    from tandem.cluster.learners.group_state import LearnerState
    from tandem.serve.api.services import CoordinatorStatus

ReplicaCondition = Literal["starting", "running", "asleep", "unhealthy", "not_answering", "stopping"]
Ending = Literal["stopped", "died", "lost"]
"""Stopped by Serve, for an update or to scale down; died of an error, which it recorded; lost without a word."""


@dataclass(frozen=True)
class Life:
    """One engine replica, from its start on. Times are Unix times."""

    base_model: str
    replica: str
    node: str
    started_at: float
    ended_at: float | None = None
    ending: Ending | None = None
    reason: str | None = None
    """The error of one that died."""


@dataclass(frozen=True)
class Replica:
    """An engine replica now."""

    id: str
    node: str | None
    """The node's address."""
    condition: ReplicaCondition
    started_at: float | None
    answer: EngineState | None
    """What the replica says about itself; None if it doesn't."""


@dataclass(frozen=True)
class BaseEngines:
    """The engines of a base model."""

    num_wanted: int
    fault: str | None
    """Why not all of them run, as a sentence without private details."""
    replicas: Sequence[Replica]
    ended: Sequence[Life]
    """Replicas that ended, the newest first."""


class BaseLearners(TypedDict):
    """The learners of a base model."""

    status: CoordinatorStatus
    learners: list[LearnerState]
    publish_s: list[float]
    """Seconds of recent publications, the oldest first."""


class ClusterView(Protocol):
    """The processes of the service. No call takes longer than a few seconds."""

    async def engines(self) -> Mapping[str, BaseEngines]:
        """Return the engines of each base model."""

    async def learners(self) -> Mapping[str, BaseLearners] | None:
        """Return the learners of each base model, None if the coordinator doesn't answer."""

    async def metric_pages(self) -> Mapping[str, str | None]:
        """Return what the metrics agent of each node says, by the node's address; None for one that doesn't answer."""
