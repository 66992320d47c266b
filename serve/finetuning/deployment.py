"""The runner of this API's jobs, for the deployment that runs jobs."""

from __future__ import annotations

from collections.abc import Callable

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.serve.api.services import EngineClient
from tandem.serve.finetuning.running.context import RunnerServices
from tandem.serve.finetuning.running.runner import FineTuningRunner
from tandem.serve.store.store import Store


def fine_tuning_runner(
    new_engine: Callable[[], EngineClient], config: TandemConfig, store: Store, artifacts: Artifacts
) -> FineTuningRunner:
    """Return the runner. `new_engine` makes a client of the engines for one event loop."""
    return FineTuningRunner(RunnerServices(config, store, artifacts, new_engine))
