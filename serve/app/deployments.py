"""The Serve application: API replicas, one coordinator, and an engine per base model."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import BaseModel
from tandem.cluster.config import TandemConfig
from tandem.cluster.engine.engine import Engine, engine_environment
from tandem.cluster.errors import EngineDeadError, ServiceStopsError
from tandem.cluster.jobs.coordinator import Coordinator
from tandem.cluster.jobs.patient_store import PatientStore
from tandem.cluster.jobs.preparation import Preparation
from tandem.cluster.jobs.preparing_ahead import PreparingAhead
from tandem.cluster.jobs.stages import JobStages
from tandem.cluster.learners.group import LearnerGroup
from tandem.cluster.logprobs.engine_scorer import EngineScore
from tandem.cluster.logprobs.of_job import JobLogprobs
from tandem.cluster.logprobs.pool import LogprobPool
from tandem.cluster.placement import place
from tandem.cluster.processes.heap import freeze_heap
from tandem.cluster.shared_storage import check_shared
from tandem.serve.api.application import create_app
from tandem.serve.api.auth import add_key, ensure_admin_key
from tandem.serve.api.inference import REPLICA_HEADER
from tandem.serve.api.services import CoordinatorStatus, Services
from tandem.serve.app.engine_health import EngineHealth
from tandem.serve.jobs.sweeping import start_sweeping
from tandem.serve.modelarts.deployment import job_runner
from tandem.serve.store.store import Store

logger = logging.getLogger(__name__)
COORDINATOR = "coordinator"  # the deployment that is asked for keys
STARTED_BY = "TANDEM_STARTED_BY"  # in the environment of API replicas
API_GRACE_S = 20.0  # for open requests, when the service ends
# Three failures in a row, and Serve replaces the replica: within a minute for one that is stopped.
HEALTH_CHECKS = {"health_check_period_s": 5, "health_check_timeout_s": 10}
STOP_MARGIN_S = 15.0  # beyond the grace of a running job: to hand it back, and to end the learners
MAX_REQUESTS = 1024  # open requests of one API or engine replica; beyond it, requests wait in Serve's queue


class EngineReplica:
    """Serves one base model: vLLM's OpenAI layer, and logprobs for the learners."""

    async def __init__(self, config: TandemConfig, base_model: str):
        base = BaseModel(config.base_model(base_model))
        artifacts = Artifacts(config.artifacts_root)
        self._engine = Engine(
            base.config.engine,
            base.path,
            served_name=base.name,
            fetch=artifacts.pull_adapter,
            max_model_len=base.max_model_len,
            lora=base.config.lora,
            answer_s=config.deadlines.engine_answer_s,
        )
        await self._engine.start(config.deadlines.start_engine_s)
        self._id = serve.get_replica_context().replica_id.unique_id  # as Serve's logs and dashboard have it

    async def http(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes, digest: str
    ) -> AsyncIterator[Any]:
        """As `Engine.http`; the headers also say which replica answers."""
        async for item in self._engine.http(method, path, headers, body, digest):
            yield (item[0], [*item[1], (REPLICA_HEADER, self._id)]) if isinstance(item, tuple) else item

    async def score(self, sequences: list[list[int]], digest: str) -> list[list[float]]:
        return await self._engine.score(sequences, digest)

    async def check_health(self) -> None:
        await self._engine.check_health()

    async def __del__(self) -> None:
        await self._engine.stop()


class CoordinatorReplica:
    """Runs a coordinator and its learners for each base model, each in a thread of its own."""

    def __init__(self, config: TandemConfig, engines: dict[str, DeploymentHandle]):
        deadlines, artifacts = config.deadlines, Artifacts(config.artifacts_root)
        self._database = Store(config.resolved_store_url)
        ensure_admin_key(self._database, config)
        store = PatientStore(self._database, deadlines.publish_s)
        bases = {base.name: BaseModel(base) for base in config.base_models}
        self._preparation = Preparation(bases, artifacts, deadlines.prepare_s)
        self._preparation.start()
        self._parts: dict[str, tuple[Coordinator, LearnerGroup, threading.Thread]] = {}
        for name, base in bases.items():
            settings = base.config
            store.put_initial_version(name, self._preparation.initial_version(name))
            learners = LearnerGroup(settings, config.artifacts_root, deadlines)
            pool = LogprobPool(settings.logprobs, settings.logprob_tolerance, deadlines.score_s)
            logprobs = JobLogprobs(learners, [engine_score(engines[name])] * settings.engine.replicas, pool)
            ahead = PreparingAhead(name, store, self._preparation)
            stages = JobStages(settings, store, self._preparation, ahead, learners, logprobs)
            coordinator = Coordinator(config.coordinator, store, stages)
            thread = threading.Thread(
                target=self._run, args=(name, coordinator, learners), name=f"coordinator-{name}", daemon=True
            )
            self._parts[name] = coordinator, learners, thread
            thread.start()

    def _run(self, name: str, coordinator: Coordinator, learners: LearnerGroup) -> None:
        def tick() -> None:
            if learners.waiting_for:  # a job may wait as well, and its sender can see that
                raise TimeoutError(learners.waiting_for)
            if coordinator.is_stopping:
                raise ServiceStopsError("The service was stopped while the learners started.")

        try:
            learners.start(tick)  # so that the first job needn't wait for it
            self._preparation.warm_up(name)  # nor for this, which before would have held up the start of the engine
        except Exception:  # the first job tries again, and says what is wrong
            logger.exception("The learners of %s didn't start", name)
        coordinator.run()
        learners.stop()

    def status(self) -> dict[str, CoordinatorStatus]:
        """For each base model: the running job, whether its learners are up, what they wait for, the last fault."""
        return {
            name: {
                "running_job": coordinator.running_job,
                "learners_running": learners.is_running,
                "waiting_for": learners.waiting_for,
                "last_error": coordinator.last_error,
            }
            for name, (coordinator, learners, _) in self._parts.items()
        }

    def make_key(self, name: str, entity: str) -> tuple[str, str]:
        """The id of a new key for training, and the key: for programs on this cluster, who needn't know the store."""
        row, key = add_key(self._database, name, entity, "train")
        return row.id, key

    def revoke_key(self, key_id: str) -> None:
        self._database.revoke_key(key_id)

    def check_health(self) -> None:
        dead = [name for name, (_, _, thread) in self._parts.items() if not thread.is_alive()]
        if dead:
            raise RuntimeError(f"The coordinator of {', '.join(dead)} has ended.")

    async def __del__(self) -> None:
        """Serve waits for this at a stop: running jobs have their grace, then they are handed back."""
        for coordinator, _, _ in self._parts.values():
            coordinator.stop()
        for _, _, thread in self._parts.values():
            await asyncio.to_thread(thread.join)
        self._preparation.stop()


class Engines:
    """The API's way to the engine replicas of each base model."""

    def __init__(self, handles: dict[str, DeploymentHandle]):
        self._handles = {name: handle.options(stream=True) for name, handle in handles.items()}

    async def http(
        self, base_model: str, method: str, path: str, headers: list[tuple[str, str]], body: bytes, digest: str
    ) -> AsyncIterator[Any]:
        """Status and headers first, then body chunks. Closing the iterator early aborts the generation."""
        stream = self._handles[base_model].http.remote(method, path, headers, body, digest)
        finished = False
        try:
            async for item in stream:
                yield item
            finished = True
        except ray.exceptions.RayActorError as error:
            raise EngineDeadError(
                f"The engine of {base_model} died while it answered; send the request again."
            ) from error
        finally:
            if not finished:
                stream.cancel()


def engine_score(handle: DeploymentHandle) -> EngineScore:
    """The coordinator's way to a replica: Serve picks one that has the least to do."""

    def score(sequences: list[list[int]], digest: str, timeout_s: float) -> list[list[float]]:
        response = handle.score.remote(sequences, digest)
        try:
            return response.result(timeout_s=timeout_s)
        except TimeoutError:
            response.cancel()
            raise

    return score


class ApiReplica:
    """FastAPI over the store, the artifacts and the engines. Stateless; any number may run."""

    def __init__(
        self,
        config: TandemConfig,
        engines: dict[str, DeploymentHandle],
        coordinator: DeploymentHandle,
        _runner: DeploymentHandle,
    ):
        bases = {base.name: BaseModel(base) for base in config.base_models}
        artifacts = Artifacts(config.artifacts_root)
        preparation = Preparation(bases, artifacts, config.deadlines.prepare_s)
        preparation.start()
        self._services = Services(
            config=config,
            store=Store(config.resolved_store_url),
            artifacts=artifacts,
            engine=Engines(engines),
            base_models=bases,
            preparation=preparation,
            coordinator_status=lambda: coordinator.status.remote(),
            engine_faults=EngineHealth(
                serve.get_replica_context().app_name,
                engines,
                {base.name: base.engine.replicas for base in config.base_models},
            ).faults,
        )
        start_sweeping(self._services)

    def __serve_build_asgi_app__(self) -> Any:
        app = create_app(self._services)
        freeze_heap()
        return app


def build_application(config: TandemConfig, started_by: str | None = None) -> serve.Application:
    """The application graph, for `serve.run`. Ray must be connected: GPUs are shared out by their number, and with
    several nodes it is checked that all of them reach the store and the artifacts.

    `started_by` can be read from the deployed application: who has started it, and may end it.
    """
    check_shared(config)
    config = place(config, int(ray.cluster_resources().get("GPU", 0)))
    engines = {}
    for base in config.base_models:
        settings = base.engine
        device = "cuda" if settings.num_gpus else "cpu"
        environment = engine_environment(device, BaseModel(base).path, num_threads=max(1, int(settings.num_cpus)))
        engines[base.name] = serve.deployment(
            EngineReplica,
            name=f"engine-{re.sub(r'[^A-Za-z0-9]+', '-', base.name)}",
            num_replicas=settings.replicas,
            max_replicas_per_node=settings.max_replicas_per_node,
            max_ongoing_requests=MAX_REQUESTS,
            ray_actor_options={
                "num_cpus": settings.num_cpus,
                "num_gpus": settings.num_gpus,
                "runtime_env": {"env_vars": environment},
            },
            **HEALTH_CHECKS,
            graceful_shutdown_timeout_s=10,
        ).bind(config, base.name)
    coordinator = serve.deployment(
        CoordinatorReplica,
        name=COORDINATOR,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
        **HEALTH_CHECKS,
        graceful_shutdown_timeout_s=config.coordinator.stop_grace_s + STOP_MARGIN_S,
    ).bind(config, engines)
    runner = job_runner(config, **HEALTH_CHECKS, graceful_shutdown_timeout_s=STOP_MARGIN_S)
    mark = {STARTED_BY: started_by} if started_by else {}
    api = serve.deployment(
        serve.ingress()(ApiReplica),
        name="api",
        num_replicas=config.http.api_replicas,
        max_ongoing_requests=MAX_REQUESTS,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"} | mark}},
        **HEALTH_CHECKS,
        graceful_shutdown_timeout_s=API_GRACE_S,
    )
    return api.bind(config, engines, coordinator, runner)
