"""The graph of the Serve application: API, coordinator, job runner, and an engine for each base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import ray
from ray import serve

from tandem.cluster.config import TandemConfig
from tandem.cluster.placement import place
from tandem.cluster.shared_storage import check_shared
from tandem.serve.alerts.deployment import alert_watch
from tandem.serve.app.api_replica import api_application
from tandem.serve.app.coordinator_replica import coordinator_application
from tandem.serve.app.engines.connections import EngineConnections
from tandem.serve.app.engines.replica import engine_application
from tandem.serve.app.service_probe import ServiceProbe
from tandem.serve.finetuning.deployment import fine_tuning_runner
from tandem.serve.modelarts.deployment import MakeRunner, job_runner_application


def build_application(config: TandemConfig, started_by: str | None = None) -> serve.Application:
    """Return the application for `serve.run`. Ray must be connected.

    Learners and engines get the GPUs of the nodes. With several nodes, it is checked that all of them reach the store
    and the artifacts. `started_by` can be read from the deployed application.

    Raises PlacementError, with the numbers, if learners and engines don't fit the GPUs.
    """
    check_shared(config)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    # `tandem up` on one machine waits for no other nodes.
    placement = place(config, gpus_of(nodes), is_fixed=started_by is not None and len(nodes) == 1)
    config = placement.config
    engines = {base.name: engine_application(placement, base) for base in config.base_models}
    coordinator = coordinator_application(placement, engines)
    others: list[MakeRunner] = [partial(fine_tuning_runner, EngineConnections), partial(alert_watch, ServiceProbe)]
    runner = job_runner_application(config, others)
    return api_application(config, engines, coordinator, runner, started_by)


def gpus_of(nodes: Sequence[Mapping[str, float]]) -> list[int]:
    """Return the number of GPUs of each node that has some. `nodes` are Ray's resources of each."""
    return [num_gpus for resources in nodes if (num_gpus := int(resources.get("GPU", 0)))]
