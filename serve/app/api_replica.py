"""The API deployment, which answers HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TandemConfig
from tandem.cluster.jobs.preparation import Preparation
from tandem.cluster.processes.deadlines import in_thread
from tandem.cluster.processes.granted_gpus import hide_other_gpus
from tandem.cluster.processes.heap import collection_paused, freeze_heap
from tandem.cluster.telemetry.setup import Telemetry
from tandem.serve.api.services import Services
from tandem.serve.app.cluster_view import ServeClusterView
from tandem.serve.app.engine_first import engine_started, wait_for_engine
from tandem.serve.app.engines import engine_directory
from tandem.serve.app.engines.connections import EngineConnections
from tandem.serve.app.engines.health import EngineHealth
from tandem.serve.app.engines.version_trials import VersionTrials
from tandem.serve.app.proxies import api_directory
from tandem.serve.app.proxies.api_server import ApiServer
from tandem.serve.app.replica_stop import ReplicaStop
from tandem.serve.deployment_options import (
    HEALTH_CHECK_PERIOD_S,
    HEALTH_CHECK_TIMEOUT_S,
    MAX_API_REQUESTS,
    ONE_THREAD,
)
from tandem.serve.jobs.sweeping import start_sweeping
from tandem.serve.keys import add_key, ensure_admin_key
from tandem.serve.store.store import Store
from tandem.serve.trajectories.upkeep import start_upkeep
from tandem.serve.usage.costs import prices_content

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tandem.cluster.engine.server import EngineAddress

API = "api"  # the deployment that also makes keys for programs on the cluster
STARTED_BY = "TANDEM_STARTED_BY"  # environment variable of the replicas
STOP_S = 20.0  # for open requests to end
POLLS_S = 2.0
logger = logging.getLogger(__name__)


class ApiReplica:
    """FastAPI over the store, the artifacts and the engines. Stateless; any number may run."""

    def __init__(
        self,
        config: TandemConfig,
        engines: dict[str, DeploymentHandle[Any]],
        coordinator: DeploymentHandle[Any],
        _runner: DeploymentHandle[Any],
    ):
        Telemetry.of(config).set_up("api")
        self._address: EngineAddress | None = None
        hide_other_gpus()
        bases = {base.name: ResolvedBaseModel(base) for base in config.base_models}
        artifacts = Artifacts(config.artifacts_root)
        preparation = Preparation(bases, artifacts, config.deadlines.prepare_s, Telemetry.of(config))
        for name, engine in engines.items():
            in_thread(partial(_warm_up, preparation, name, engine), "warm-up")
        store = Store(config.resolved_store_url)
        application = serve.get_replica_context().app_name
        num_engines = {base.name: base.engine.replicas for base in config.base_models}
        ensure_admin_key(store, config)
        store.usage.set_prices(prices_content(config.prices))
        self._services = Services(
            config=config,
            store=store,
            artifacts=artifacts,
            engine=EngineConnections(),
            base_models=bases,
            preparation=preparation,
            trials=VersionTrials(coordinator, engines, config.deadlines),
            coordinator_status=lambda: coordinator.status.remote(),
            engine_faults=EngineHealth(application, engines, num_engines).faults,
            cluster=ServeClusterView(application, engines, num_engines, coordinator),
            stops=ReplicaStop(serve.get_replica_context()).is_requested,
        )
        engine_directory.publish_config(config.model_dump_json(exclude={"alerts"}))  # whose secrets proxies don't need
        start_sweeping(store, artifacts, config.deadlines, config.retention, config.tinker)
        start_upkeep(store, artifacts, config)

    async def make_key(self, name: str, entity: str) -> tuple[str, str]:
        """Create a key for training. Return its id and the key: programs on this cluster don't know the store."""
        row, key = await asyncio.to_thread(add_key, self._services.store, name, entity, "train")
        return row.id, key

    async def revoke_key(self, key_id: str) -> None:
        await asyncio.to_thread(self._services.store.keys.revoke, key_id)

    def __serve_build_asgi_app__(self) -> FastAPI:
        with collection_paused():
            from tandem.serve.api.application import create_app  # large, and the command that deploys needs none of it

            app = create_app(self._services)
        freeze_heap()
        self._server = ApiServer(app, serve.get_replica_context().replica_id.unique_id)
        return app

    async def check_health(self) -> None:
        """Announce this replica to the proxies, which pass on requests of the Tinker API themselves."""
        try:
            if self._address is None:
                self._address = await self._server.start(ray.util.get_node_ip_address())
            await asyncio.to_thread(api_directory.announce, self._address)
        except Exception:  # Ray's GCS restarts
            logger.warning("This replica isn't announced yet; the next check tries again", exc_info=True)

    async def __del__(self) -> None:
        """Stop. Proxies send requests elsewhere, and those that wait for results are sent again."""
        if self._address is not None:
            with suppress(Exception):
                await asyncio.to_thread(api_directory.withdraw, api_directory.API, self._address)
            await self._server.stop(POLLS_S, STOP_S - 5)


def _warm_up(preparation: Preparation, base_model: str, engine: DeploymentHandle[Any]) -> None:
    """Prepare for the first payload once the engine leaves processors to others.

    In a thread, for which neither the replica's readiness nor a payload waits: a payload loads what it needs itself.
    """
    wait_for_engine(engine_started(engine))
    try:
        preparation.warm_up(base_model)
    except Exception:
        logger.warning("Nothing is prepared for the first payload of %s", base_model, exc_info=True)


def api_application(
    config: TandemConfig,
    engines: Mapping[str, serve.Application],
    coordinator: serve.Application,
    job_runner: serve.Application,
    started_by: str | None,
) -> serve.Application:
    """`started_by` is written on the deployment, so that a later command knows who may end the service."""
    mark = {STARTED_BY: started_by} if started_by else {}
    deployment = serve.deployment(
        name=API,
        num_replicas=config.http.api_replicas,
        max_ongoing_requests=MAX_API_REQUESTS,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": ONE_THREAD | mark}},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=STOP_S,
    )
    return deployment(serve.ingress()(ApiReplica)).bind(config, dict(engines), coordinator, job_runner)
