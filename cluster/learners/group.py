"""N learner actors that act as one learner: placement, the process group, sharding, deadlines, and death of a rank."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tandem.cluster.config import BaseModelConfig, DeadlinesConfig
from tandem.cluster.errors import PeerLostError, StageError
from tandem.cluster.learners.worker import LearnerWorker
from tandem.cluster.logprobs.pool import Score
from tandem.cluster.processes.ray_failures import stage_error

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.rl.config import LossConfig
    from tandem.rl.packing import PackedSequence

logger = logging.getLogger(__name__)
T = TypeVar("T", bound="PackedSequence")
TICK_S = 0.5
PEER_DEATH_S = 2.0  # how long a dead actor may take to be noticed by Ray
PLACEMENT_S = 3.0  # how long Ray may take to place learners that there is room for
NODE_DEATH_S = 90.0  # the same for a node: about 15 s when its processes die, a minute when it doesn't answer at all


def shard_by_tokens(sequences: Sequence[T], num_shards: int) -> list[list[T]]:
    """Splits sequences over learners so that the largest token count is small (longest first, to the lightest shard).

    Returns exactly `num_shards` lists; some are empty when there are fewer sequences. Deterministic.
    """
    shards: list[list[T]] = [[] for _ in range(num_shards)]
    loads = [0] * num_shards
    for sequence in sorted(sequences, key=lambda s: s.num_tokens, reverse=True):
        lightest = loads.index(min(loads))
        shards[lightest].append(sequence)
        loads[lightest] += sequence.num_tokens
    return shards


class LearnerGroup:
    """The learners of one base model.

        group = LearnerGroup(base, artifacts_root, deadlines)
        group.load(digest)                       # starts the actors when they aren't running
        metrics = group.step(sequences, loss, learning_rate, chunk_size)
        digest = group.save(metadata)

    After any failure the actors are gone (their process group can't be trusted) and the next `load` starts new ones.
    `tick` is called about twice a second while the group waits; an exception it raises abandons the work.
    """

    def __init__(self, base: BaseModelConfig, artifacts_root: str, deadlines: DeadlinesConfig):
        self._base, self._artifacts_root, self._deadlines = base, artifacts_root, deadlines
        self.waiting_for: str | None = None  # what the cluster lacks, from when it is missed until the learners start
        self._placement: PlacementGroup | None = None
        self._workers: list[Any] = []
        self._digest: str | None = None  # of the state the learners hold; None when it belongs to no checkpoint

    @property
    def sequences_per_step(self) -> int:
        return self._base.learners.sequences_per_step or self._base.learners.count

    @property
    def is_running(self) -> bool:
        return bool(self._workers)

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Places and starts the learners. Raises StageError when the cluster can't hold them before the deadline."""
        if self._workers:
            return
        began = time.monotonic()
        settings, count = self._base.learners, self._base.learners.count
        bundle = {"CPU": settings.num_cpus, "GPU": settings.num_gpus}
        bundle = {kind: amount for kind, amount in bundle.items() if amount} or {"CPU": 0.01}
        try:
            self._placement = placement_group([bundle] * count, strategy=settings.placement)
            self._wait_for_placement(bundle, tick)
            self._workers = [self._place_worker(rank) for rank in range(count)]
            deadline_s = self._deadlines.start_learners_s
            meeting = None
            if count > 1:
                [meeting] = self._gather("start_learners", deadline_s, tick, [self._workers[0].rendezvous.remote()])
            # A rank waits for its peers no longer than the slowest stage may take.
            timeout_s = max(deadline_s, self._deadlines.step_s)
            devices = self._gather(
                "start_learners", deadline_s, tick, [w.start.remote(meeting, timeout_s) for w in self._workers]
            )
        except BaseException:
            self.stop()
            raise
        logger.info("%d learners of %s on %s in %.1f s", count, self._base.name, devices, time.monotonic() - began)

    def load(self, digest: str, tick: Callable[[], None] = lambda: None) -> None:
        """Brings every learner to the state of a checkpoint. Free when they hold it already."""
        self.start(tick)
        if self._digest != digest:
            self._digest = None
            self._call("load", self._deadlines.load_s, tick, lambda worker, _: worker.load.remote(digest))
            self._digest = digest

    def step(
        self,
        sequences: Sequence[PackedSequence],
        loss: LossConfig,
        learning_rate: float,
        logprob_chunk_size: int,
        tick: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """One gradient step over packed sequences, split over the learners by token count. Returns its metrics."""
        self._digest = None
        shards = shard_by_tokens(sequences, len(self._workers))
        results = self._call(
            "step",
            self._deadlines.step_s,
            tick,
            lambda worker, rank: worker.step.remote(shards[rank], loss, learning_rate, logprob_chunk_size),
        )
        return results[0]

    def scorers(self, digest: str, logprob_chunk_size: int) -> list[Score]:
        """For each learner, what scores packed rows under any version; see `LogprobPool`. They must be running."""

        def scorer(worker: Any) -> Score:
            def score(rows: Sequence[PackedSequence], timeout_s: float) -> list[Tensor]:
                try:
                    return ray.get(worker.score.remote(digest, rows, logprob_chunk_size), timeout=timeout_s)
                except ray.exceptions.RayError as error:
                    raise stage_error("score", "a learner", error) from error

            return score

        return [scorer(worker) for worker in self._workers]

    def save(self, metadata: dict[str, str | int], tick: Callable[[], None] = lambda: None) -> str:
        """Writes the learners' state as a durable checkpoint and returns its digest."""
        deadline_s = self._deadlines.checkpoint_s
        [digest] = self._gather("checkpoint", deadline_s, tick, [self._workers[0].save.remote(metadata)])
        self._call("checkpoint", deadline_s, tick, lambda worker, _: worker.hold.remote(digest))
        self._digest = digest
        return digest

    def stop(self) -> None:
        """Ends the actors and gives their resources back."""
        for worker in self._workers:
            ray.kill(worker)
        if self._placement is not None:
            remove_placement_group(self._placement)
        self._workers, self._placement, self._digest = [], None, None

    def _place_worker(self, rank: int) -> Any:
        settings = self._base.learners
        threads = str(settings.num_threads or max(1, int(settings.num_cpus)))
        actor = ray.remote(LearnerWorker).options(
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus or 0,
            max_restarts=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}},
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=rank),
        )
        return actor.remote(rank, settings.count, self._base, self._artifacts_root)

    def _call(
        self, stage: str, deadline_s: float, tick: Callable[[], None], call: Callable[[Any, int], Any]
    ) -> list[Any]:
        return self._gather(stage, deadline_s, tick, [call(worker, rank) for rank, worker in enumerate(self._workers)])

    def _gather(self, stage: str, deadline_s: float, tick: Callable[[], None], refs: list[Any]) -> list[Any]:
        """All results, in order. The first failure of a rank ends the wait: its peers may be stuck in a collective."""
        deadline = time.monotonic() + deadline_s
        pending, results, ref = list(refs), {}, None
        try:
            while pending:
                ready, pending = ray.wait(pending, num_returns=1, timeout=TICK_S)
                for ref in ready:
                    results[ref] = ray.get(ref)
                tick()
                if pending and time.monotonic() > deadline:
                    raise StageError(
                        stage,
                        f"{len(pending)} of {len(refs)} learners gave no answer within {deadline_s:g} s.",
                        f"Raise deadlines.{_DEADLINE_OF[stage]} if the work is really this long; "
                        "otherwise look at the learners' logs (`ray logs`) and the machine's load.",
                        retryable=True,
                    )
        except BaseException as error:
            workers = dict(zip(refs, self._workers, strict=False))  # some calls are rank 0's alone
            try:
                cause = _cause(error, workers.get(ref), {ref: workers[ref] for ref in pending}, tick)
            finally:
                self.stop()
            raise stage_error(stage, "a learner", cause) from error
        return [results[ref] for ref in refs]

    def _wait_for_placement(self, bundle: dict[str, float], tick: Callable[[], None]) -> None:
        began = time.monotonic()
        while not self._placement.wait(TICK_S):
            waited_s = time.monotonic() - began
            is_late = waited_s > self._deadlines.start_learners_s
            lack = (
                f"the cluster has no room for {self._base.learners.count} learners of {_amounts(bundle)} each"
                f"{_WHERE.get(self._base.learners.placement, '')} (available: {_amounts(ray.available_resources())}, "
                f"in all: {_amounts(ray.cluster_resources())}, nodes: {sum(n['Alive'] for n in ray.nodes())})"
            )
            if is_late or waited_s > PLACEMENT_S:
                self.waiting_for = lack
            tick()
            if is_late:
                raise StageError(
                    "start_learners",
                    f"after {self._deadlines.start_learners_s:g} s, {lack}.",
                    "Add nodes, lower learners.count, num_cpus or num_gpus, or change learners.placement.",
                    retryable=True,
                )
        self.waiting_for = None


_WHERE = {"STRICT_SPREAD": " on nodes of their own", "STRICT_PACK": " on one node"}
_DEADLINE_OF = {
    "start_learners": "start_learners_s",
    "load": "load_s",
    "step": "step_s",
    "checkpoint": "checkpoint_s",
}


def _cause(error: BaseException, worker: Any, pending: dict[Any, Any], tick: Callable[[], None]) -> BaseException:
    """What is worth telling of the first failure of a rank, that of `worker`; `pending` has the others by their calls.

    A rank whose peer dies fails too, in a collective, and often first. Of an actor whose node is lost, Ray first says
    only that it can't be reached. It is worth waiting for more: until Ray has noticed, it would place new learners on
    that node.
    """
    if not isinstance(error, ray.exceptions.RayActorError):
        is_cut_off = isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, PeerLostError)
        deadline = time.monotonic() + (NODE_DEATH_S if is_cut_off else PEER_DEATH_S)
        while pending and time.monotonic() < deadline and not isinstance(error, ray.exceptions.RayActorError):
            for ref in ray.wait(list(pending), num_returns=1, timeout=TICK_S)[0]:
                peer = pending.pop(ref)
                try:
                    ray.get(ref)
                except ray.exceptions.RayActorError as death:
                    error, worker = death, peer
                except Exception:
                    continue
            tick()
    return _last_word(error, worker, tick) if isinstance(error, ray.exceptions.ActorUnavailableError) else error


def _last_word(error: BaseException, worker: Any, tick: Callable[[], None]) -> BaseException:
    """What an actor that can't be reached has died of, once Ray knows. `error` where it is back, or Ray never does."""
    deadline, answer = time.monotonic() + NODE_DEATH_S, worker.__ray_ready__.remote()
    while time.monotonic() < deadline:
        tick()
        if not ray.wait([answer], timeout=TICK_S)[0]:
            continue
        try:
            ray.get(answer)
            return error
        except ray.exceptions.ActorUnavailableError:
            time.sleep(TICK_S)
            answer = worker.__ray_ready__.remote()
        except ray.exceptions.RayError as death:
            return death
    return error


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{kind} {resources.get(kind, 0):g}" for kind in ("CPU", "GPU"))
