"""The services that the routes use."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypedDict

from fastapi import Depends, Request

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.serve.adapters.importing import Trials
from tandem.serve.api.version_watch import VersionWatch
from tandem.serve.changes.feed import ChangeFeed, never_stops
from tandem.serve.observing.cluster_state import ClusterView
from tandem.serve.store.store import Store

if TYPE_CHECKING:
    from tandem.cluster.jobs.preparation import PayloadSource
    from tandem.cluster.payloads.rows import RowCounts
    from tandem.rl.config import TrainingConfig
    from tandem.rl.settings import LoraSettings
    from tandem.rl.traces.sent import SentTokens

Headers = list[tuple[str, str]]


class EngineClient(Protocol):
    """The engine replicas of all base models."""

    def http(
        self,
        base_model: str,
        method: str,
        path: str,
        headers: Headers,
        body: bytes,
        digest: str,
        replica: str | None = None,
    ) -> AsyncGenerator[tuple[int, Headers] | bytes]:
        """Yield status and headers, then chunks of the body. Closing the generator early aborts the generation.

        `replica` names the one to ask. Without it, any may answer, and the request waits while there is none.

        Raises EngineDeadError, which is an EngineLostError if the named replica isn't there any more.
        """

    async def serves(self, base_model: str) -> bool:
        """Return True if the base model has a replica that takes requests."""


class Preparation(Protocol):
    """Reads stored payloads, which may be large, in another process. All calls may raise StageError."""

    def warm_up(self, base_model: str) -> None:
        """Load what the first check for this base model needs. Returns at once."""

    def begin_check(self, base_model: str, path: Path, policy: str) -> None:
        """Begin to check a payload that still arrives in a file. Returns at once."""

    def check(
        self, base_model: str, payload_key: str, config: TrainingConfig, policy: str, arrived: Path | None = None
    ) -> None:
        """Raise PayloadError, TrajectoryError or ConfigError for a payload that `policy` can't be trained on.

        `arrived` is the file of `begin_check`.
        """

    def count_rows(self, dataset_key: str) -> RowCounts:
        """Return the counts of a valid dataset. Raises PayloadError."""

    def log_metrics(self, payload_key: str) -> dict[str, float]:
        """Return the metrics of logged trajectories. Raises PayloadError."""

    def sizes(self, base_model: str) -> tuple[int, int]:
        """Return the number of token ids of a base model, and its longest sequence in tokens."""

    def token_bytes(self, base_model: str, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes that each token stands for."""

    def sent_tokens(self, base_model: str, source: PayloadSource, group: int, trajectory: int) -> SentTokens | None:
        """Return the tokens of a trajectory as it was sent, None if there is none. Raises PayloadError."""

    def initial_version(self, base_model: str, lora: LoraSettings | None = None) -> str:
        """Make version 0 with these LoRA settings durable and return its digest.

        Raises PolicyError, which is a LoraLimitError for settings beyond the limits of the base model.
        """

    def import_adapter(
        self, base_model: str, config_file: Path, weights_file: Path, lora: LoraSettings, about: Mapping[str, Any]
    ) -> str:
        """Make an adapter in PEFT's files a durable checkpoint and return its digest. Raises AdapterError."""


class CoordinatorStatus(TypedDict):
    running_jobs: list[str]
    running_runs: list[str]
    """Training clients whose calls are executed, or were a moment ago."""
    learners_running: bool
    waiting_for: str | None
    """The resources that the cluster lacks to start the learners."""
    last_error: str | None
    """The last error outside a job, until the coordinator has recovered."""
    alarm: str | None
    """A sentence while the base model can't be trained, or trains on other logprobs than its engine has."""


@dataclass(frozen=True)
class EngineFault:
    """Why the engines of a base model don't all answer, as a sentence."""

    sentence: str
    completions_wait: bool = True
    """No engine answers. Otherwise others of the base model do."""

    def __str__(self) -> str:
        return self.sentence


class CompletionServices(Protocol):
    """The part of the services that completions need."""

    @property
    def config(self) -> TandemConfig: ...
    @property
    def store(self) -> Store: ...
    @property
    def engine(self) -> EngineClient: ...
    @property
    def base_models(self) -> Collection[str]: ...


@dataclass(frozen=True)
class Services:
    config: TandemConfig
    store: Store
    artifacts: Artifacts
    engine: EngineClient
    base_models: Collection[str]
    """Their names."""
    preparation: Preparation
    trials: Trials
    coordinator_status: Callable[[], Awaitable[Mapping[str, CoordinatorStatus]]]
    """The status of each base model's coordinator."""
    engine_faults: Callable[[], Awaitable[Mapping[str, EngineFault]]]
    """The fault of each base model of which an engine can't answer."""
    stops: Callable[[], Awaitable[bool]] = never_stops
    """Whether this process is being stopped, so that streams have to end."""
    cluster: ClusterView | None = None
    """The service's processes on Ray."""

    @cached_property
    def version_watch(self) -> VersionWatch:
        """The waits of this process's requests for new versions."""
        return VersionWatch(self.store)

    @cached_property
    def change_feed(self) -> ChangeFeed:
        """The changes that this process's streams report."""
        limits = self.config.limits
        return ChangeFeed(self.store, limits.max_streams, limits.max_streams_per_entity, self.stops)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
