"""From a stored payload to packed sequences, and from a base model to its version 0, in a process of its own.

Parsing and tokenising hold Python's interpreter lock for seconds on a large payload, and take memory in proportion. A
process apart keeps API and lease threads responsive meanwhile, can be ended at a deadline, and takes nobody along when
memory runs out. Who asks needs none of the libraries that this takes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tandem.cluster.artifacts import Artifacts, job_artifact_key
from tandem.cluster.errors import StageError
from tandem.cluster.processes.heap import freeze_heap
from tandem.cluster.processes.ray_failures import stage_error
from tandem.rl.errors import RLError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tandem.cluster.jobs.job import QueuedJob
    from tandem.rl.batch import TrainingBatch
    from tandem.rl.config import TrainingConfig
    from tandem.rl.packing import PackedSequence
    from tandem.rl.trajectories import TrajectoryGroup

logger = logging.getLogger(__name__)
TICK_S = 0.5
MAX_AT_ONCE = 4  # so that small payloads needn't wait for a large one
WHO = "the process that prepares jobs"
_WORK = {"initial_version": "making the base model's version 0"}


class TextModel(Protocol):
    """What a base model makes of trajectories, and its version 0."""

    def build_batch(
        self, groups: Iterable[TrajectoryGroup], config: TrainingConfig, shuffle_seed: int | None
    ) -> TrainingBatch:
        """Raises TrajectoryError or ConfigError for what it can't train on."""

    def write_initial_version(self, artifacts: Artifacts) -> str:
        """Makes version 0 durable and returns its digest. Raises PolicyError for an adapter that can't be made."""


class PreparationWorker:
    """Prepares payloads of the artifact store, and versions 0. A Ray actor in production, a plain object in tests."""

    def __init__(self, base_models: Mapping[str, TextModel], artifacts: Artifacts):
        self._base_models, self._artifacts = base_models, artifacts
        self._warm: set[str] = set()

    def initial_version(self, base_model: str) -> str:
        """What `TextModel.write_initial_version` returns."""
        return self._base_models[base_model].write_initial_version(self._artifacts)

    def warm_up(self, base_model: str) -> None:
        """Loads what the first payload would have to wait for: some libraries, and the model's tokenizer."""
        from tandem.rl.config import TrainingConfig

        if base_model not in self._warm:
            self._base_models[base_model].build_batch([], TrainingConfig(), None)
            freeze_heap()
            self._warm.add(base_model)

    def check(self, base_model: str, payload_key: str, config: TrainingConfig) -> None:
        """Raises the RLError that says why a job of this payload can't be trained, or ArtifactError."""
        self.batch(base_model, payload_key, config, shuffle_seed=None)

    def batch(
        self, base_model: str, payload_key: str, config: TrainingConfig, shuffle_seed: int | None
    ) -> TrainingBatch:
        """What a job trains on. Raises what `check` does."""
        from tandem.cluster.payloads.reading import read_groups

        self.warm_up(base_model)
        groups = read_groups(self._artifacts, payload_key)
        return self._base_models[base_model].build_batch(groups, config, shuffle_seed)

    def log_metrics(self, payload_key: str) -> dict[str, float]:
        """How much a log of trajectories holds, and their mean reward. Raises PayloadError or ArtifactError."""
        from tandem.cluster.payloads.reading import read_groups

        rewards: list[float] = []
        num_groups = 0
        for group in read_groups(self._artifacts, payload_key):
            num_groups += 1
            rewards += [trajectory.reward for trajectory in group.trajectories]
        metrics = {"num_groups": num_groups, "num_trajectories": len(rewards)}
        return {**metrics, "reward": fmean(rewards)} if rewards else metrics

    def plot(self, job_id: str, sequences: Sequence[PackedSequence]) -> None:
        """Leaves pictures of packed sequences among the job's artifacts."""
        from tandem.rl.plots import plot_batch

        for name, png in plot_batch(sequences).items():
            self._artifacts.write_blob(job_artifact_key(job_id, name), png)


@dataclass(eq=False)
class _Actor:
    handle: Any
    was_ended: bool = False  # by this process, at a deadline: what else ran there isn't to blame


class Preparation:
    """The way to a PreparationWorker in an actor of its own, which is started, and started again, as needed.

        preparation = Preparation(base_models, artifacts, deadlines.prepare_s)
        preparation.check(base_model, payload_key, config)

    Thread-safe. Its calls raise the worker's RLError and OSError as they are. A deadline that passed, a worker that
    died or raised anything else is a StageError("prepare"). `tick` is called about twice a second; what it raises ends
    the work.
    """

    def __init__(self, base_models: Mapping[str, TextModel], artifacts: Artifacts, deadline_s: float):
        self._arguments, self._deadline_s = (base_models, artifacts), deadline_s
        self._lock = threading.Lock()
        self._actor: _Actor | None = None

    def start(self) -> None:
        """Starts the process, without waiting for it."""
        self._running()

    def warm_up(self, base_model: str) -> None:
        """Lets the process load what a first payload of the model needs, without waiting for it."""
        self._running().handle.warm_up.remote(base_model)

    def stop(self) -> None:
        """Ends the process; a later call would start another."""
        if actor := self._actor:
            self._end(actor)

    def initial_version(self, base_model: str) -> str:
        """What `PreparationWorker.initial_version` returns."""
        return self._call("initial_version", (base_model,), lambda: None)

    def check(
        self, base_model: str, payload_key: str, config: TrainingConfig, tick: Callable[[], None] = lambda: None
    ) -> None:
        """Raises what `PreparationWorker.check` does, or StageError."""
        self._call("check", (base_model, payload_key, config), tick)

    def batch(self, base_model: str, job: QueuedJob, tick: Callable[[], None] = lambda: None) -> TrainingBatch:
        """What the job trains on: packed sequences, whose order follows from the job's id alone."""
        return self._call("batch", (base_model, job.payload_key, job.config, job.shuffle_seed), tick)

    def log_metrics(self, payload_key: str, tick: Callable[[], None] = lambda: None) -> dict[str, float]:
        """What `PreparationWorker.log_metrics` returns."""
        return self._call("log_metrics", (payload_key,), tick)

    def plot(self, job_id: str, sequences: Sequence[PackedSequence], tick: Callable[[], None] = lambda: None) -> None:
        """Does what `PreparationWorker.plot` does."""
        self._call("plot", (job_id, sequences), tick)

    def _call(self, method: str, arguments: tuple[Any, ...], tick: Callable[[], None]) -> Any:
        deadline = time.monotonic() + self._deadline_s
        while True:
            actor = self._running()
            try:
                return self._result(actor, method, arguments, deadline, tick)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, (RLError, OSError)):
                    raise error.cause from None
                raise stage_error("prepare", WHO, error) from error
            except ray.exceptions.RayError as error:
                self._end(actor)
                if not actor.was_ended:
                    raise stage_error("prepare", WHO, error) from error
            except BaseException:
                actor.was_ended = True
                self._end(actor)
                raise

    def _result(
        self, actor: _Actor, method: str, arguments: tuple[Any, ...], deadline: float, tick: Callable[[], None]
    ) -> Any:
        ref = getattr(actor.handle, method).remote(*arguments)
        while not ray.wait([ref], timeout=TICK_S)[0]:
            tick()
            if time.monotonic() > deadline:
                raise StageError(
                    "prepare",
                    f"{_WORK.get(method, 'the work on the payload')} took longer than {self._deadline_s:g} s.",
                    "Raise deadlines.prepare_s if it is really this much work; otherwise look at the machine's load.",
                    retryable=True,
                )
        return ray.get(ref)

    def _running(self) -> _Actor:
        with self._lock:
            if self._actor is None:
                # On the node of who asks: no other node's death can take it along.
                here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
                worker = ray.remote(PreparationWorker).options(
                    num_cpus=0,
                    scheduling_strategy=here,
                    max_restarts=0,
                    max_concurrency=MAX_AT_ONCE,
                    runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}},
                )
                self._actor = _Actor(worker.remote(*self._arguments))
            return self._actor

    def _end(self, actor: _Actor) -> None:
        with self._lock:
            if self._actor is actor:
                self._actor = None
        ray.kill(actor.handle)
