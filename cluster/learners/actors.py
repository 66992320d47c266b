"""The actors of a learner group: their start, calls to all of them under deadlines, and their end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tandem.cluster.artifacts import Artifacts, job_artifact_key
from tandem.cluster.config import BaseModelConfig, DeadlinesConfig, TinkerConfig
from tandem.cluster.errors import LearnersLostError, StageError
from tandem.cluster.learners.failures.causes import cause_of
from tandem.cluster.learners.failures.gpu_faults import GpuFaults
from tandem.cluster.learners.failures.progress import ProgressWatch, Rank, Watched, stall_error
from tandem.cluster.learners.failures.stacks import Whereabouts, stacks_of
from tandem.cluster.learners.group_state import LearnerState, learner_states
from tandem.cluster.learners.job_worker import WATCHING, WRITING
from tandem.cluster.learners.places.gpu_memory import learner_environment
from tandem.cluster.learners.places.learner_places import LearnerPlaces
from tandem.cluster.learners.worker import LearnerWorker
from tandem.cluster.metrics import recording
from tandem.cluster.placement import Placement
from tandem.cluster.processes.ray_failures import stage_error
from tandem.cluster.processes.waiting import WAIT_PERIOD_S, OnWait, wait_on
from tandem.cluster.telemetry.setup import Telemetry

logger = logging.getLogger(__name__)
WRITERS = 4  # checkpoints that a learner writes at once


class LearnerActors:
    """One actor per learner of a base model, which work together or not at all.

        actors = LearnerActors(base, artifacts_root, deadlines, places)
        actors.start()
        results = actors.call(actors.running, "load", lambda worker, rank: worker.load.remote(digest))
        actors.stop()

    After any failure of a call, and after an exception of `on_wait`, all actors are gone, because their process group
    can't be trusted. The next `start` starts new ones.
    """

    def __init__(
        self,
        base: BaseModelConfig,
        artifacts_root: str,
        deadlines: DeadlinesConfig,
        places: LearnerPlaces,
        telemetry: Telemetry | None,
        tinker: TinkerConfig,
        placement: Placement | None,
    ):
        """See `LearnerGroup`."""
        self._base, self._artifacts_root, self._deadlines = base, artifacts_root, deadlines
        self._places, self._placement = places, placement
        self._telemetry, self._tinker = telemetry, tinker
        self._gpu_faults = GpuFaults()
        self._lock = threading.Lock()  # guards the next one, and the return of places
        self._running: list[Any] = []
        self._where: list[Whereabouts] = []  # the actors are
        self._watch: ProgressWatch | None = None
        self._is_ready = False
        self.calling = threading.Lock()
        """Held while several learners are called, so that calls of two threads reach all of them in one order."""

    @property
    def running(self) -> list[Any]:
        """The actors that run now: another list after each start, and an empty one between."""
        return self._running

    @property
    def is_ready(self) -> bool:
        """True if the learners have started, and none has been lost as far as is known."""
        return self._is_ready

    def states(self) -> list[LearnerState]:
        """Return the state of each learner that runs, within a second or so."""
        workers, places = self._running, self._where
        return learner_states(workers, places, WATCHING) if self._is_ready else []

    def start(self, on_wait: OnWait = wait_on) -> None:
        """Place and start the learners. Raise StageError if the cluster has no room for them before the deadline."""
        if self._is_ready:
            return
        began = time.monotonic()
        settings, count, stage = self._base.learners, self._base.learners.count, "start_learners"
        try:
            strategies = self._places.take(on_wait, self._gpu_faults.selector)
            self._running = [self._start_one(rank, strategy) for rank, strategy in enumerate(strategies)]
            self._where = self.call(self._running, stage, lambda w, _: w.whereabouts.remote(), on_wait)
            meeting = None
            if count > 1:
                [meeting] = self.call(self._running[:1], stage, lambda w, _: w.rendezvous.remote(), on_wait)
            # A rank waits for its peers no longer than the slowest stage may take.
            timeout_s = max(self._deadlines.start_learners_s, self._deadlines.step_s)
            devices = self.call(self._running, stage, lambda w, _: w.start.remote(meeting, timeout_s), on_wait)
            # Again, with the UUIDs of GPUs.
            self._where = self.call(self._running, stage, lambda w, _: w.whereabouts.remote(), on_wait)
            self._watch = ProgressWatch(self._running, self._deadlines.step_progress_s, WATCHING)
        except BaseException:
            self.stop()
            raise
        self._is_ready = True
        recording.count("tandem_learner_starts_total", base_model=self._base.name)
        recording.set_gauge("tandem_learners_running", count, base_model=self._base.name)
        if count > 1 and settings.sequences_per_step is None and settings.tokens_per_step is None:
            logger.warning(
                "A gradient step of %s takes %d packed sequences, one for each learner. Set learners.tokens_per_step "
                "so that the number of learners doesn't change the steps.",
                self._base.name,
                count,
            )
        logger.info("%d learners of %s on %s in %.1f s", count, self._base.name, devices, time.monotonic() - began)

    def call(
        self,
        workers: list[Any],
        stage: str,
        call: Callable[[Any, int], Any],
        on_wait: OnWait = wait_on,
        watched_for: Watched | None = None,
    ) -> list[Any]:
        """Return the results of a call to each of these actors, in order, before the stage's deadline.

        The first failure of a rank ends the wait and the actors: its peers may be stuck in a collective.

        Args:
            stage: start_learners, load, step or checkpoint.
            call: makes the call to an actor, given its rank.
            watched_for: end the actors when one makes no progress in this work, as in a gradient step.

        Raises StageError, and LearnersLostError if the actors have ended during other work.
        """
        if not workers:
            raise LearnersLostError("The learners have just ended. This job begins again.")
        with self.calling:
            refs = [call(worker, rank) for rank, worker in enumerate(workers)]
        deadline_s = self._deadline_s(stage)
        deadline = time.monotonic() + deadline_s
        pending, results, ref = list(refs), {}, None
        called = dict(zip(refs, workers, strict=False))  # some calls go to rank 0 only
        places = self._where  # of a group that another job may end meanwhile
        watch = self._watch if watched_for is not None else None
        if watch:
            watch.begin()
        try:
            while pending:
                ready, pending = ray.wait(pending, num_returns=1, timeout=WAIT_PERIOD_S)
                for ref in ready:
                    results[ref] = ray.get(ref)
                on_wait()
                if watch and watched_for and (stalled := watch.look([called[ref] for ref in pending])):
                    raise self._stall(stalled, places, watched_for)
                if pending and time.monotonic() > deadline:
                    raise _late(stage, len(pending), len(refs), deadline_s)
        except BaseException as error:
            if workers[0] not in self._running:
                raise LearnersLostError("The learners ended during the work for another job.") from error
            try:
                cause, worker = cause_of(error, called.get(ref), {ref: called[ref] for ref in pending}, on_wait)
                rank = workers.index(worker) if worker in workers else 0
                place = places[rank] if places else None
            finally:
                self.stop()
            raise self._gpu_faults.explain(stage, cause, rank, place) from error
        if watch:
            watch.completed()
            self._gpu_faults.succeeded()
        return [results[ref] for ref in refs]

    def result_beside_steps(
        self, call: Any, workers: list[Any], is_shared: Callable[[], bool], on_wait: OnWait = wait_on
    ) -> Any:
        """Return the result of a call of the stage "checkpoint" that runs beside the gradient steps of other jobs.

        A failure, or an exception of `on_wait`, leaves the actors running, unless they are lost or the deadline has
        passed. If `is_shared` says that another job works with them, a loss is left for that job to find.
        """
        deadline_s = self._deadline_s("checkpoint")
        deadline = time.monotonic() + deadline_s
        try:
            while not ray.wait([call], timeout=WAIT_PERIOD_S)[0]:
                on_wait()
                if time.monotonic() > deadline:
                    self.stop()
                    raise _late("checkpoint", 1, 1, deadline_s)
            return ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise stage_error("checkpoint", "a learner", error) from error
        except ray.exceptions.RayError as error:
            if workers is not self._running or is_shared():
                raise LearnersLostError("The learners ended during the work for another job.") from error
            self.stop()
            raise stage_error("checkpoint", "a learner", error) from error

    def stop(self) -> None:
        """End the actors and release their resources."""
        with self._lock:
            workers, self._running, self._is_ready = self._running, [], False
            self._where = []
            recording.set_gauge("tandem_learners_running", 0, base_model=self._base.name)
            for worker in workers:
                ray.kill(worker)
            self._places.give_back()

    def _start_one(self, rank: int, strategy: PlacementGroupSchedulingStrategy) -> Any:
        settings = self._base.learners
        threads = str(settings.num_threads or max(1, int(settings.num_cpus)))
        environment = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        if settings.num_gpus:
            environment |= learner_environment()
        grouped: Any = ray.remote(concurrency_groups={WRITING: WRITERS, WATCHING: 1})  # type: ignore[call-overload]  # Ray's types lack it
        actor = grouped(LearnerWorker).options(
            num_cpus=settings.num_cpus,
            num_gpus=self._places.num_gpus,
            max_restarts=0,
            runtime_env={"env_vars": environment},
            scheduling_strategy=strategy,
        )
        artifacts = self._artifacts_root
        return actor.remote(rank, settings.count, self._base, artifacts, self._telemetry, self._tinker, self._placement)

    def _deadline_s(self, stage: str) -> float:
        seconds: float = getattr(self._deadlines, _DEADLINE_OF[stage])
        return seconds

    def _stall(self, stalled: Sequence[Rank], places: Sequence[Whereabouts], work: Watched) -> StageError:
        """Return the error of ranks that make no progress, after their stacks were kept as an artifact of the work."""
        found = zip(places, stacks_of(places), strict=True)
        stacks = "\n".join(f"Learner {rank}, {place}:\n{text}" for rank, (place, text) in enumerate(found))
        name = work.new_file()
        try:
            Artifacts(self._artifacts_root).write_blob(job_artifact_key(work.owner, name), stacks.encode())
            kept = f"The stacks of all learners are in the artifact {name} of {work.kind} {work.owner}."
        except OSError as error:
            logger.error("Learners have stalled. Their stacks:\n%s", stacks)
            kept = (
                f"The stacks of all learners are in the coordinator's log, since the artifact wasn't written: {error}."
            )
        return stall_error(stalled, places, self._deadlines.step_progress_s, kept)


_DEADLINE_OF = {
    "start_learners": "start_learners_s",
    "load": "load_s",
    "step": "step_s",
    "checkpoint": "checkpoint_s",
}


def _late(stage: str, num_missing: int, num_called: int, deadline_s: float) -> StageError:
    return StageError(
        stage,
        f"{num_missing} of {num_called} learners gave no answer within {deadline_s:g} s.",
        f"Raise deadlines.{_DEADLINE_OF[stage]} if the work really takes this long; "
        "otherwise check the learners' logs (`ray logs`) and the machine's load.",
        retryable=True,
    )
