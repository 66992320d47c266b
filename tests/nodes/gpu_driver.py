"""The process that places learners and engines on a cluster whose nodes have GPUs, as far as Ray knows."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import serve
from ray.serve._private.constants import SERVE_NAMESPACE

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, DeadlinesConfig, EngineConfig, LearnersConfig, TandemConfig
from tandem.cluster.errors import StageError
from tandem.cluster.learners.group import LearnerGroup
from tandem.cluster.learners.places.engine_places import EnginePlaces
from tandem.cluster.learners.places.learner_places import LearnerPlaces
from tandem.cluster.placement import Placement, place
from tandem.serve.app.engines import engine_directory
from tandem.serve.app.engines.replica import EngineReplica, engine_application
from tandem.serve.app.graph import gpus_of

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers don't have the tests' folder
NAME = "tandem/tiny"
START_S = 200.0  # a bound; on an idle machine a few seconds


@dataclass(frozen=True)
class Granted:
    """The GPUs that Ray has granted to an actor."""

    node: str
    gpus: list[str]
    visible: str | None
    """Its CUDA_VISIBLE_DEVICES."""


def granted(_: object = None) -> Granted:
    context = ray.get_runtime_context()
    return Granted(context.get_node_id(), context.get_accelerator_ids()["GPU"], os.environ.get("CUDA_VISIBLE_DEVICES"))


class PlacedEngine(EngineReplica):
    """An engine replica that announces its place and loads no model."""

    async def __init__(self, config: TandemConfig, base_model: str):
        self._place, self._base_model = engine_directory.own_place(), base_model
        await self._announce_place()

    async def check_health(self) -> None:
        await self._announce_place()

    async def __del__(self) -> None:
        engine_directory.withdraw_place(self._base_model, self._place)


class PlacedLearner:
    """A learner that loads no model."""


def join() -> None:
    """Connect this process to the cluster of RAY_ADDRESS."""
    ray.init(logging_level="ERROR", log_to_driver=False)


def configured(directory: Path, num_learners: int, num_engines: int) -> Placement:
    learners = LearnersConfig(count=num_learners, num_cpus=0.5, num_gpus=0.5, device="cpu")
    engine = EngineConfig(replicas=num_engines, num_cpus=0.5, num_gpus=0.5)
    base = BaseModelConfig(name=NAME, path="builtin:tiny", learners=learners, engine=engine)
    return place(
        TandemConfig(base_models=(base,), home=directory),
        gpus_of([node["Resources"] for node in ray.nodes()]),
        is_fixed=True,
    )


@contextmanager
def engines(placement: Placement) -> Iterator[LearnerPlaces]:
    """Run the engines of a placement in Ray Serve, with the resources of real ones. Yield the places of learners."""
    [base] = placement.base_models
    application = engine_application(placement, base)
    placed = application._bound_deployment.options(func_or_class=PlacedEngine)
    serve.start(http_options={"location": "NoServer"})
    serve.run(placed.bind(placement, base.name), name="engines", route_prefix=None)
    rooms = EnginePlaces(engine_directory.places)
    places = LearnerPlaces(base, placement.of[base.name], rooms, placement.engines_first, START_S)
    try:
        yield places
    finally:
        places.give_back()
        serve.shutdown()


def of_engines() -> list[Granted]:
    """Return the GPUs of the engine replicas."""
    replicas = [ray.get_actor(p.actor, namespace=SERVE_NAMESPACE) for p in engine_directory.places().get(NAME, ())]
    return ray.get([replica.__ray_call__.remote(granted) for replica in replicas], timeout=START_S)


def place_all(directory: Path, num_learners: int, num_engines: int) -> tuple[list[Granted], list[Granted]]:
    """Return the GPUs of learners and engines that run at the same time."""
    with engines(configured(directory, num_learners, num_engines)) as places:
        strategies = places.take(lambda: None)
        actor = ray.remote(PlacedLearner)
        options = {"num_cpus": 0.5, "num_gpus": places.num_gpus}
        learners = [actor.options(scheduling_strategy=strategy, **options).remote() for strategy in strategies]
        found = ray.get([learner.__ray_call__.remote(granted) for learner in learners], timeout=START_S)
        return found, of_engines()


def lose_an_engine(directory: Path) -> tuple[list[str], list[tuple[list[Granted], list[Granted]]]]:
    """Let a group of two learners train, kill the engine beside one of them, and let the next attempt begin.

    Return why attempts ended, and the GPUs of learners and engines before and after.
    """
    placement = configured(directory, 2, 1)
    [base] = placement.base_models
    initial = ResolvedBaseModel(base).write_initial_version(Artifacts(placement.config.artifacts_root))
    causes, seen = [], []

    def look() -> None:
        learners = [worker.__ray_call__.remote(granted) for worker in group.workers]
        seen.append((ray.get(learners, timeout=START_S), of_engines()))

    with engines(placement) as places:
        group = LearnerGroup(base, placement.config.artifacts_root, DeadlinesConfig(), places)
        group.start()
        look()
        [before] = engine_directory.places()[NAME]
        ray.kill(ray.get_actor(before.actor, namespace=SERVE_NAMESPACE))
        deadline = time.monotonic() + START_S
        while len(causes) < 1 and time.monotonic() < deadline:
            try:
                group.load(initial, "job")
                time.sleep(0.2)
            except StageError as error:
                assert error.retryable
                causes.append(str(error))
        group.start()
        group.load(initial, "job")
        look()
        group.stop()
    return causes, seen


def unused(_: object = None) -> dict[str, str | None]:
    """Return what actors without GPUs see: directly, and once they have hidden those that weren't granted."""
    from tandem.cluster.processes.granted_gpus import hide_other_gpus

    before = granted().visible
    hide_other_gpus()
    return {"before": before, "after": granted().visible}


def visible_devices(num_gpus: float) -> dict[str, str | None]:
    actor = ray.remote(PlacedLearner).options(num_cpus=0, num_gpus=num_gpus).remote()
    seen: dict[str, str | None] = ray.get(actor.__ray_call__.remote(unused), timeout=START_S)
    return seen
