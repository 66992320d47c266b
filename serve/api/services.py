"""What the routes work with, handed in by whoever runs them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol, TypedDict

from fastapi import Depends, Request

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.serve.store.store import Store

if TYPE_CHECKING:
    from tandem.rl.config import TrainingConfig

Headers = list[tuple[str, str]]


class EngineClient(Protocol):
    """The way to the engine replicas."""

    def http(
        self, base_model: str, method: str, path: str, headers: Headers, body: bytes, digest: str
    ) -> AsyncGenerator[tuple[int, Headers] | bytes]:
        """Status and headers first, then chunks of the body. Closing the generator early aborts the generation."""


class Preparation(Protocol):
    """Reads stored payloads in a process of its own: they may be large. All calls may raise StageError."""

    def warm_up(self, base_model: str) -> None:
        """Lets a first check of a payload of this model begin at once. Doesn't wait."""

    def check(self, base_model: str, payload_key: str, config: TrainingConfig) -> None:
        """Raises PayloadError, TrajectoryError or ConfigError for what can't be trained on."""

    def log_metrics(self, payload_key: str) -> dict[str, float]:
        """What a log of trajectories amounts to. Raises PayloadError."""


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
    base_models: Collection[str]
    """Their names."""
    preparation: Preparation
    coordinator_status: Callable[[], Awaitable[Mapping[str, CoordinatorStatus]]]
    """For each base model."""
    engine_faults: Callable[[], Awaitable[Mapping[str, str]]]
    """What keeps engines from answering, for each base model where something does."""


async def _services(request: Request) -> Services:
    return request.app.state.services


ServicesDep = Annotated[Services, Depends(_services)]
