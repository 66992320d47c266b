"""The engine deployment of a base model."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress

import ray
from ray import serve

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, TandemConfig
from tandem.cluster.engine.core.core_process import preload_core
from tandem.cluster.engine.engine import Engine, engine_environment
from tandem.cluster.engine.metrics.engine_metrics import EngineMetrics, gpu_memory
from tandem.cluster.engine.metrics.engine_state import StateOfEngine
from tandem.cluster.engine.metrics.usage import EngineUsage
from tandem.cluster.engine.samples.futures import SampleLimits
from tandem.cluster.engine.server import EngineServer
from tandem.cluster.engine.setup.gpu_memory import plan_on_gpu, settings_on_gpu
from tandem.cluster.engine.setup.settings import EngineDevice
from tandem.cluster.engine.versions.version_checks import VersionReport
from tandem.cluster.engine.versions.version_loader import Files
from tandem.cluster.errors import EngineDeadError
from tandem.cluster.placement import Placement
from tandem.cluster.processes.granted_gpus import hide_other_gpus
from tandem.cluster.processes.heap import collection_paused
from tandem.cluster.telemetry.context import Ids, logged_with
from tandem.cluster.telemetry.setup import Telemetry
from tandem.cluster.telemetry.tracing import span
from tandem.serve.app.engines import engine_directory
from tandem.serve.app.engines import history as engine_history
from tandem.serve.deployment_options import HEALTH_CHECK_PERIOD_S, HEALTH_CHECK_TIMEOUT_S, MAX_REQUESTS
from tandem.serve.observing.cluster_state import Ending

logger = logging.getLogger(__name__)

DRAIN_S = 20.0  # for open completions to end
STOP_S = DRAIN_S + 10.0


class EngineReplica:
    """Serves one base model: vLLM's OpenAI layer, and logprobs for the learners."""

    async def __init__(self, placement: Placement, base_model: str):  # type: ignore[misc]  # Serve awaits it
        config = placement.config
        telemetry = Telemetry.of(config)
        telemetry.set_up("engine", base_model=base_model)
        telemetry.set_up_vllm("engine", base_model=base_model)
        hide_other_gpus()
        if not config.base_model(base_model).engine.num_gpus:
            preload_core()  # it takes longest
        self._place = engine_directory.own_place()
        base = ResolvedBaseModel(config.base_model(base_model), placement)
        self._base_model = base.name
        await self._announce_place()  # learners that share this replica's GPU may start beside it
        # Its id as in Serve's logs and dashboard.
        replica, host = serve.get_replica_context().replica_id.unique_id, ray.util.get_node_ip_address()
        self._life = await asyncio.to_thread(engine_history.record_start, base.name, replica, host)
        try:
            with collection_paused():
                await self._start(config, base, replica, host)
        except Exception as error:
            await self._record_end("died", str(error))
            raise

    async def _start(self, config: TandemConfig, base: ResolvedBaseModel, replica: str, host: str) -> None:
        artifacts = Artifacts(config.artifacts_root)
        plan = await asyncio.to_thread(plan_on_gpu, base)
        self._engine = Engine(
            settings_on_gpu(base, plan),
            base.path,
            served_name=base.name,
            fetch=artifacts.pull_verified_adapter,
            max_model_len=base.max_model_len,
            lora=base.config.largest_lora,
            answer_s=config.deadlines.engine_answer_s,
            hold_s=config.deadlines.inference_s / 2,
            sample_limits=SampleLimits(
                max_waiting=config.tinker.max_samples_waiting,
                max_kept_bytes=config.tinker.max_kept_sample_bytes,
                abandoned_s=config.tinker.sample_abandoned_s,
                ttl_s=config.tinker.sample_s,
                grace_s=config.tinker.sample_grace_s,
            ),
        )
        await self._engine.start(config.deadlines.start_engine_s)
        self._name = replica
        EngineMetrics(self._engine, base.name, replica, gpu_memory).start()
        state = StateOfEngine(self._engine, plan)
        self._server = EngineServer(self._engine.completions, replica, state.read, self._engine.samples)
        self._address = await self._server.start(host)  # at which other nodes reach this node's Ray
        await self._announce()

    async def _record_end(self, ending: Ending, reason: str | None = None) -> None:
        await asyncio.to_thread(engine_history.record_end, self._life, ending, reason)

    async def _announce(self) -> None:
        await asyncio.to_thread(engine_directory.announce, self._base_model, self._address)

    async def _announce_place(self) -> None:
        await asyncio.to_thread(engine_directory.announce_place, self._base_model, self._place)

    async def score(
        self, sequences: list[list[int]], digest: str, ids: Ids | None = None, job_id: str = ""
    ) -> list[list[float]]:
        with logged_with(**(ids or {})), span("engine score", sequences=len(sequences)):
            return await self._engine.score(sequences, digest, job_id=job_id)

    async def usage(self, acknowledged: dict[str, int]) -> EngineUsage:
        """Return what this replica has counted after the batches that are recorded, by replica."""
        return EngineUsage(self._name, self._base_model, self._engine.usage.take(acknowledged.get(self._name, 0)))

    async def check_version(self, digest: str, files: Files | None, ids: Ids | None = None) -> VersionReport | None:
        with logged_with(**(ids or {})), span("engine load version", digest=digest):
            report = await self._engine.check_version(digest, files)
            logger.info("Loaded version %s, which a job has made", digest[:12])
            return report

    async def sleep(self, holder: str, lease_s: float) -> None:
        """See `EngineSleep.lease`."""
        await self._engine.sleep.lease(holder, lease_s)

    async def wake_up(self, holder: str) -> None:
        """See `EngineSleep.release`."""
        await self._engine.sleep.release(holder)

    async def check_health(self) -> None:
        try:
            await self._engine.check_health()
        except EngineDeadError as error:  # Serve replaces this replica, maybe without another call
            await self._record_end("died", str(error))
            raise
        try:
            await self._announce()
            await self._announce_place()
        except Exception:  # Ray's GCS restarts
            logger.warning(
                "The engine of %s isn't announced yet; the next check tries again", self._base_model, exc_info=True
            )

    async def not_finite(self) -> list[str]:
        """Return `Engine.not_finite`. Raises EngineDeadError, as `check_health` does."""
        await self._engine.check_health()
        return self._engine.not_finite()

    async def __del__(self) -> None:
        """Stop. Serve waits for this: open completions have their time, and new ones go to other replicas."""
        with suppress(Exception):
            await asyncio.to_thread(engine_directory.withdraw_place, self._base_model, self._place)
        if hasattr(self, "_address"):
            with suppress(Exception):
                await asyncio.to_thread(engine_directory.withdraw, self._base_model, self._address)
            await self._server.stop(DRAIN_S)
            with suppress(Exception):
                await asyncio.to_thread(engine_directory.leave_usage, await self.usage({}))
        if hasattr(self, "_life"):
            await self._record_end("stopped")
        if hasattr(self, "_engine"):
            await self._engine.stop()


def engine_deployment_name(base_model: str) -> str:
    return f"engine-{re.sub(r'[^A-Za-z0-9]+', '-', base_model)}"


def engine_application(placement: Placement, base: BaseModelConfig) -> serve.Application:
    """Return the engines of a base model. Where learners share their GPUs, a replica reserves room for one."""
    settings, placed = base.engine, placement.of[base.name]
    device: EngineDevice = "cuda" if settings.num_gpus else "cpu"
    threads = max(1, int(settings.num_cpus / settings.tensor_parallel_size))  # of each of the replica's processes
    resolved = ResolvedBaseModel(base)
    environment = engine_environment(device, resolved.path, threads, resolved.engine_path)
    deployment = serve.deployment(
        name=engine_deployment_name(base.name),
        num_replicas=settings.replicas,
        # Serve limits no replicas with bundles; the placement has made sure that their nodes are small enough.
        max_replicas_per_node=None if placed.engine_bundle else settings.max_replicas_per_node,  # type: ignore[arg-type]  # None: no limit
        max_ongoing_requests=MAX_REQUESTS,
        ray_actor_options={
            "num_cpus": settings.num_cpus,
            "num_gpus": settings.num_gpus,
            "runtime_env": {"env_vars": environment},
        },
        placement_group_bundles=[placed.engine_bundle] if placed.engine_bundle else None,  # type: ignore[arg-type]  # None: none
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=STOP_S,
    )
    return deployment(EngineReplica).bind(placement, base.name)
