"""Runs the jobs of this API in a Serve deployment."""

from __future__ import annotations

import asyncio
import threading

from ray import serve

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.processes.granted_gpus import hide_other_gpus
from tandem.serve.deployment_options import (
    HEALTH_CHECK_PERIOD_S,
    HEALTH_CHECK_TIMEOUT_S,
    ONE_THREAD,
    STOP_MARGIN_S,
)
from tandem.serve.modelarts.running.runner import JobRunner
from tandem.serve.modelarts.store.store import ModelArtsStore
from tandem.serve.store.store import Store


class JobRunnerReplica:
    """Runs a JobRunner in a thread."""

    def __init__(self, config: TandemConfig):
        hide_other_gpus()
        self._stop = threading.Event()
        store = Store(config.resolved_store_url)
        runner = JobRunner(config, ModelArtsStore(store.database), store, Artifacts(config.artifacts_root))
        self._thread = threading.Thread(target=runner.run, args=(self._stop,), name="job-runner", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        if not self._thread.is_alive():
            raise RuntimeError("The job runner's thread has ended.")

    async def __del__(self) -> None:
        """Release the jobs. Serve waits for this when it shuts down; the jobs continue on the Ray cluster."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join)


def job_runner_application(config: TandemConfig) -> serve.Application:
    """Return the deployment, bound to the configuration."""
    deployment = serve.deployment(
        name="job-runner",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": ONE_THREAD}},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=STOP_MARGIN_S,
    )
    return deployment(JobRunnerReplica).bind(config)
