"""The coordinator deployment: it runs the training jobs and the calls of all base models."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.errors import ServiceStopsError, StageError
from tandem.cluster.jobs.coordinator import Coordinator
from tandem.cluster.jobs.engine_agreement import EngineAgreement
from tandem.cluster.jobs.initial_version import initial_version
from tandem.cluster.jobs.patient_store import PatientStore
from tandem.cluster.jobs.preparation import Preparation
from tandem.cluster.jobs.preparing_ahead import PreparingAhead
from tandem.cluster.jobs.stages import JobStages
from tandem.cluster.jobs.traces import JobTraces
from tandem.cluster.jobs.tracing import TracedPhases
from tandem.cluster.learners.group import LearnerGroup
from tandem.cluster.learners.places.engine_places import EnginePlaces
from tandem.cluster.learners.places.learner_places import LearnerPlaces
from tandem.cluster.logprobs.engine_scorer import EngineScore
from tandem.cluster.logprobs.of_job import JobLogprobs
from tandem.cluster.logprobs.pool import LogprobPool
from tandem.cluster.metrics.recording import sample_often
from tandem.cluster.placement import Placement
from tandem.cluster.processes.granted_gpus import hide_other_gpus
from tandem.cluster.processes.waiting import OnWait
from tandem.cluster.telemetry.setup import Telemetry
from tandem.rl.version_probe import VersionProbe
from tandem.serve.api.services import CoordinatorStatus
from tandem.serve.app.call_runners import call_runners
from tandem.serve.app.engine_first import engine_started, has_room_for_all, wait_for_engine
from tandem.serve.app.engines import engine_directory
from tandem.serve.app.engines.handles import engine_check, engine_score, engine_usage, engines_asleep
from tandem.serve.deployment_options import (
    HEALTH_CHECK_PERIOD_S,
    HEALTH_CHECK_TIMEOUT_S,
    ONE_THREAD,
    STOP_MARGIN_S,
)
from tandem.serve.observing.cluster_state import BaseLearners
from tandem.serve.observing.queue_metrics import QueueMetrics
from tandem.serve.store.store import Store
from tandem.serve.usage.collection import UsageCollection

logger = logging.getLogger(__name__)
COORDINATOR = "coordinator"  # the name of the deployment


class CoordinatorReplica:
    """Runs a coordinator and its learners for each base model, each in a thread of its own."""

    def __init__(self, placement: Placement, engines: dict[str, DeploymentHandle[Any]]):
        config = placement.config
        telemetry = Telemetry.of(config)
        telemetry.set_up("coordinator")
        hide_other_gpus()
        self._config, self._engines = config, engines
        deadlines, artifacts = config.deadlines, Artifacts(config.artifacts_root)
        whole_store = Store(config.resolved_store_url)
        self._store = store = PatientStore(whole_store.claims, deadlines.publish_s)
        bases = {base.name: ResolvedBaseModel(base) for base in config.base_models}
        self._preparation = Preparation(bases, artifacts, deadlines.prepare_s, telemetry)
        self._parts: dict[str, tuple[Coordinator, LearnerGroup, threading.Thread]] = {}
        self._agreements: dict[str, EngineAgreement] = {}
        self._stages: dict[str, JobStages] = {}
        places = EnginePlaces(engine_directory.places)
        self._refusals: dict[str, str] = {}  # why the learners reject their base model
        for name, base in bases.items():
            settings = base.config
            initial_digest = initial_version(base, artifacts, self._preparation.initial_version)
            store.put_initial_version(name, initial_digest)
            where = LearnerPlaces(
                settings, placement.of[name], places, placement.engines_first, deadlines.start_learners_s
            )
            learners = LearnerGroup(
                settings, config.artifacts_root, deadlines, where, telemetry, config.tinker, placement
            )
            # Learners that share the weights score a chunk together.
            chunk_tokens = settings.logprobs.chunk_tokens * settings.learners.shard
            chunks = settings.logprobs.model_copy(update={"chunk_tokens": chunk_tokens})
            pool = LogprobPool(chunks, settings.logprob_tolerance, deadlines.score_s)
            score = engine_score(engines[name])
            logprobs = JobLogprobs(
                learners, [score] * settings.num_scoring_engines, pool, partial(_charged_to, engines[name])
            )
            ahead = PreparingAhead(name, store, self._preparation)
            self._agreements[name] = EngineAgreement(
                name,
                initial_digest,
                settings.least_precise_dtype,
                learners,
                engine_score(engines[name]),
                engine_check(engines[name]),
            )
            asleep = engines_asleep(engines[name], config) if settings.engine.sleep else None
            stages = JobStages(
                *(settings, self._preparation, ahead, learners, logprobs, self._agreements[name], asleep),
                traces=JobTraces(artifacts, config.trajectories, config.keeps_trajectories),
            )
            self._stages[name] = stages
            coordinator = Coordinator(config.coordinator, store, stages, [TracedPhases(), stages.counted])
            thread = threading.Thread(
                target=self._run, args=(name, coordinator, learners), name=f"coordinator-{name}", daemon=True
            )
            self._parts[name] = coordinator, learners, thread
        self._runners = call_runners(config, whole_store, artifacts, self._stages)
        for _, _, thread in self._parts.values():
            thread.start()
        sample_often(QueueMetrics(whole_store.live_state, list(bases)).sample)
        fetches = [engine_usage(engine) for engine in engines.values()]
        self._usage = UsageCollection(whole_store.usage, fetches, engine_directory.take_left_usage)
        self._usage.start()

    def _run(self, name: str, coordinator: Coordinator, learners: LearnerGroup) -> None:
        def on_wait() -> None:
            if learners.waiting_for:  # leave the wait to a job, which shows it to its sender
                raise TimeoutError(learners.waiting_for)
            if coordinator.is_stopping:
                raise ServiceStopsError("The service was stopped while the learners started.")

        runner = self._runners[name]
        calls = threading.Thread(target=runner.run, name=f"runs-{name}", daemon=True)
        calls.start()
        try:
            if self._config.base_model(name).engine.sleep:  # the learners start while the engine sleeps
                self._preparation.warm_up(name)
            else:
                self._start_early(name, coordinator, learners, on_wait)
        except Exception as error:  # the first job tries again and reports the cause
            if isinstance(error, StageError) and not error.retryable:
                self._refusals[name] = error.cause
            logger.exception("The learners of %s didn't start", name)
        coordinator.run()
        calls.join()
        learners.stop()

    def _start_early(self, name: str, coordinator: Coordinator, learners: LearnerGroup, on_wait: OnWait) -> None:
        """Start the learners, so that the first job finds them running, and compare them with the engine."""
        on_cpu = not self._config.base_model(name).engine.num_gpus
        if on_cpu and not has_room_for_all(self._config, ray.cluster_resources().get("CPU", 0)):
            self._wait_for_engine(name, coordinator)
        self._preparation.warm_up(name)
        learners.start(on_wait)
        if on_cpu:
            self._wait_for_engine(name, coordinator)
        if self._store.next_queued(name) is None:  # otherwise the job compares them
            self._agreements[name].compare_base(on_wait)

    def _wait_for_engine(self, name: str, coordinator: Coordinator) -> None:
        wait_for_engine(
            engine_started(self._engines[name]),
            lambda: coordinator.is_stopping or self._store.next_queued(name) is not None,
        )

    def status(self) -> dict[str, CoordinatorStatus]:
        """Return for each base model the running jobs and runs, the state of its learners and the last error."""
        return {
            name: {
                "running_jobs": coordinator.running_jobs,
                "running_runs": self._runners[name].running_runs,
                "learners_running": learners.is_running,
                "waiting_for": learners.waiting_for,
                "last_error": coordinator.last_error or self._runners[name].last_error,
                "alarm": self._agreements[name].alarm or (None if learners.is_running else self._refusals.get(name)),
            }
            for name, (coordinator, learners, _) in self._parts.items()
        }

    async def learners(self) -> dict[str, BaseLearners]:
        """Return for each base model its learners, the jobs that use them, and how fast versions were published."""
        groups = {name: learners for name, (_, learners, _) in self._parts.items()}
        # In threads, because a group that doesn't answer takes its whole time.
        found = await asyncio.gather(*(asyncio.to_thread(group.states) for group in groups.values()))
        status = self.status()
        return {
            name: {
                "status": status[name],
                "learners": states,
                "publish_s": self._stages[name].counted.recent_publications,
            }
            for name, states in zip(groups, found, strict=True)
        }

    async def probe_version(self, base_model: str, digest: str) -> VersionProbe:
        """Return the learners' logprobs of the probe under a version that no job has made.

        Raises StageError, also if the learners aren't free in time, and the errors of `LearnerGroup.probe_version`.
        """
        stages, deadline_s = self._stages[base_model], self._config.deadlines.load_s
        end = time.monotonic() + deadline_s

        def on_wait() -> None:
            if time.monotonic() > end:
                busy = stages.learners.waiting_for or "jobs use the learners"
                raise StageError("load", f"after {deadline_s:g} s, {busy}.", "Try again later.", retryable=True)

        return await asyncio.to_thread(stages.probe_version, digest, on_wait)

    def check_health(self) -> None:
        dead = [name for name, (_, _, thread) in self._parts.items() if not thread.is_alive()]
        if dead:
            raise RuntimeError(f"The coordinator of {', '.join(dead)} has ended.")

    async def __del__(self) -> None:
        """Stop. Serve waits for this: running jobs and calls have their grace, then they return to the queue."""
        for name, (coordinator, _, _) in self._parts.items():
            self._runners[name].stop()
            coordinator.stop()
        for _, _, thread in self._parts.values():
            await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._usage.stop)
        self._preparation.stop()


def _charged_to(handle: DeploymentHandle[Any], _: EngineScore, job_id: str) -> EngineScore:
    return engine_score(handle, job_id)


def coordinator_application(placement: Placement, engines: Mapping[str, serve.Application]) -> serve.Application:
    deployment = serve.deployment(
        name=COORDINATOR,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": ONE_THREAD}},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=placement.config.coordinator.stop_grace_s + STOP_MARGIN_S,
    )
    return deployment(CoordinatorReplica).bind(placement, dict(engines))
