"""The graph of the Serve application: API, coordinator, job runner, and an engine for each base model."""

from __future__ import annotations

import ray
from ray import serve

from tandem.cluster.config import TandemConfig
from tandem.cluster.placement import place
from tandem.cluster.shared_storage import check_shared
from tandem.serve.app.api_replica import api_application
from tandem.serve.app.coordinator_replica import coordinator_application
from tandem.serve.app.engine_replica import engine_application
from tandem.serve.modelarts.deployment import job_runner_application


def build_application(config: TandemConfig, started_by: str | None = None) -> serve.Application:
    """Return the application for `serve.run`. Ray must be connected.

    GPUs are divided between learners and engines by their number. With several nodes, it is checked that all of them
    reach the store and the artifacts. `started_by` can be read from the deployed application.
    """
    check_shared(config)
    config = place(config, int(ray.cluster_resources().get("GPU", 0)))
    engines = {base.name: engine_application(config, base) for base in config.base_models}
    coordinator = coordinator_application(config, engines)
    runner = job_runner_application(config)
    return api_application(config, engines, coordinator, runner, started_by)
