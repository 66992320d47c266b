"""What the routes work with, handed in by whoever runs them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol, TypedDict

from fastapi import Depends, Request

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.serve.store import Store

if TYPE_CHECKING:
    from tandem.rl.batch import TrainingBatch
    from tandem.rl.config import TrainingConfig
    from tandem.rl.trajectories import TrajectoryGroup

Headers = list[tuple[str, str]]


class EngineClient(Protocol):
    """The way to the engine replicas."""

    def http(
        self, base_model: str, method: str, path: str, headers: Headers, body: bytes, digest: str
    ) -> AsyncGenerator[tuple[int, Headers] | bytes]:
        """Status and headers first, then chunks of the body. Closing the generator early aborts the generation."""


class TextModel(Protocol):
    """What a base model makes of trajectories."""

    def build_batch(
        self, groups: Sequence[TrajectoryGroup], config: TrainingConfig, shuffle_seed: int | None
    ) -> TrainingBatch:
        """Raises TrajectoryError or ConfigError for what it can't train on."""


class CoordinatorStatus(TypedDict):
    running_job: str | None
    learners_running: bool
    waiting_for: str | None
    """What the cluster lacks to start the learners."""
    last_error: str | None
    """The last fault outside a job, until the coordinator has recovered."""


@dataclass(frozen=True)
class Services:
    config: TandemConfig
    store: Store
    artifacts: Artifacts
    engine: EngineClient
    base_models: Mapping[str, TextModel]
    coordinator_status: Callable[[], Awaitable[Mapping[str, CoordinatorStatus]]]
    """For each base model."""


async def _services(request: Request) -> Services:
    return request.app.state.services


ServicesDep = Annotated[Services, Depends(_services)]
