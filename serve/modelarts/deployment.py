"""Runs the jobs of this API in a Serve deployment, beside the runners of other APIs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from ray import serve

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.processes.granted_gpus import hide_other_gpus
from tandem.cluster.telemetry.setup import Telemetry
from tandem.serve.deployment_options import (
    HEALTH_CHECK_PERIOD_S,
    HEALTH_CHECK_TIMEOUT_S,
    ONE_THREAD,
    STOP_MARGIN_S,
)
from tandem.serve.modelarts.running.runner import JobRunner
from tandem.serve.modelarts.store.store import ModelArtsStore
from tandem.serve.store.store import Store


class Runner(Protocol):
    def run(self, stop: threading.Event) -> None:
        """Run jobs until `stop` is set."""


MakeRunner = Callable[[TandemConfig, Store, Artifacts], Runner]


class JobRunnerReplica:
    """Runs a JobRunner, and the runners that `others` make, each in a thread."""

    def __init__(self, config: TandemConfig, others: Sequence[MakeRunner] = ()):
        Telemetry.of(config).set_up("job-runner")
        hide_other_gpus()
        self._stop = threading.Event()
        store, artifacts = Store(config.resolved_store_url), Artifacts(config.artifacts_root)
        runners: list[Runner] = [JobRunner(config, ModelArtsStore(store.database), store, artifacts)]
        runners += [make(config, store, artifacts) for make in others]
        self._threads = [
            threading.Thread(target=runner.run, args=(self._stop,), name=type(runner).__name__, daemon=True)
            for runner in runners
        ]
        for thread in self._threads:
            thread.start()

    def check_health(self) -> None:
        for thread in self._threads:
            if not thread.is_alive():
                raise RuntimeError(f"The job runner's thread {thread.name} has ended.")

    async def __del__(self) -> None:
        """Release the jobs. Serve waits for this when it shuts down; the jobs continue on the Ray cluster."""
        self._stop.set()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)


def job_runner_application(config: TandemConfig, others: Sequence[MakeRunner] = ()) -> serve.Application:
    """Return the deployment, bound to the configuration and to further runners."""
    deployment = serve.deployment(
        name="job-runner",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": ONE_THREAD}},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=STOP_MARGIN_S,
    )
    return deployment(JobRunnerReplica).bind(config, list(others))
