"""One claimed job with all that its method needs: its model, its training jobs, and the services."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import BaseModelConfig, TandemConfig
from tandem.cluster.payloads.compressed import compressor
from tandem.rl.config import TrainingConfig
from tandem.rl.trajectories import TrajectoryGroup
from tandem.serve.api.services import CompletionServices, EngineClient
from tandem.serve.errors import QueueFullError
from tandem.serve.finetuning.running.following import Following
from tandem.serve.finetuning.running.supervision import Supervision
from tandem.serve.finetuning.store.claims import ClaimedFineTuning, FineTuningClaims
from tandem.serve.finetuning.store.store import FineTuningStore
from tandem.serve.jobs.accept import JobAcceptance, OfferedJob
from tandem.serve.store.store import Store
from tandem.serve.store.tables.training import ModelRow

FULL_QUEUE_S = 1.0


@dataclass(frozen=True)
class RunnerServices:
    """The services that running jobs use."""

    config: TandemConfig
    store: Store
    artifacts: Artifacts
    new_engine: Callable[[], EngineClient]
    """Makes an engine client for one event loop."""

    @property
    def base_models(self) -> list[str]:
        return [base.name for base in self.config.base_models]


@dataclass(frozen=True)
class _CompletionServices:
    config: TandemConfig
    store: Store
    engine: EngineClient
    base_models: list[str]


@dataclass(frozen=True)
class JobContext:
    job: ClaimedFineTuning
    method: dict[str, Any]
    """With numbers for all hyperparameters."""
    model: ModelRow
    supervision: Supervision
    services: RunnerServices
    finetuning: FineTuningStore
    total_steps: int | None = None
    """Gradient steps of the whole job, if their number is known."""

    @property
    def config(self) -> TandemConfig:
        return self.services.config

    @property
    def base(self) -> BaseModelConfig:
        return self.config.base_model(self.job.base_model)

    @property
    def claims(self) -> FineTuningClaims:
        return self.finetuning.claims

    @cached_property
    def following(self) -> Following:
        return Following(self.job, self.model, self.supervision, self.services.store, self.finetuning, self.total_steps)

    @property
    def first_step(self) -> int:
        """The step of the version from which the job starts: a fork's first version is version 1."""
        return 1 if self.job.start_step else 0

    def completion_services(self) -> CompletionServices:
        """Return the services of completions, for the calling event loop."""
        services = self.services
        return _CompletionServices(services.config, services.store, services.new_engine(), services.base_models)

    def newest_version(self) -> str:
        """Return the name of the model's newest version."""
        step = self.services.store.versions.newest_steps([self.model.id]).get(self.model.id, 0)
        return f"{self.model.path}:step{step}"

    def training_job(self, index: int) -> str | None:
        """Return the id of training job number `index` if it was accepted."""
        return self.claims.training_job(self.job, index, self.model.id)

    def accept_groups(self, index: int, groups: Sequence[TrajectoryGroup], training: TrainingConfig) -> str:
        """Return the id of training job number `index`, accepted on these groups."""
        body = b'{"model_id":"%s","trajectory_groups":[%s],"experimental_config":%s}' % (
            self.model.id.encode(),
            b",".join(group.model_dump_json(exclude_unset=True).encode() for group in groups),
            training.model_dump_json(exclude_none=True).encode(),
        )
        return self.accept(
            OfferedJob(
                self.model,
                training,
                hashlib.sha256(body).hexdigest(),
                lambda key: self.services.artifacts.write_blob(key, compressor().compress(body)),
                self.job.key(index),
            )
        )

    def accept(self, offered: OfferedJob) -> str:
        """Return the id of an accepted training job. Waits for room in the queue."""
        services = self.services
        acceptance = JobAcceptance(services.store, services.artifacts, services.config)
        while True:
            try:
                return acceptance.accept(offered, confirm=lambda: self.supervision.wait(0)).row.id
            except QueueFullError:
                self.supervision.wait(FULL_QUEUE_S)
