"""N learner actors that act as one learner: placement, the process group, sharding, and deadlines."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tandem.cluster.artifacts import Artifacts, job_artifact_key
from tandem.cluster.config import BaseModelConfig, DeadlinesConfig, TinkerConfig
from tandem.cluster.errors import LearnersLostError, StageError
from tandem.cluster.jobs.phases import PhaseClock
from tandem.cluster.learners.failures import cause_of
from tandem.cluster.learners.gpu_faults import GpuFaults
from tandem.cluster.learners.gpu_memory import learner_environment
from tandem.cluster.learners.group_state import LearnerState, learner_states
from tandem.cluster.learners.job_worker import WATCHING, WRITING
from tandem.cluster.learners.memory import NO_VERSION, StepMemory, Warn, first_shortage, no_warning, shortage_behind
from tandem.cluster.learners.places import LearnerPlaces
from tandem.cluster.learners.progress import ProgressWatch, Rank, Watched, stall_error
from tandem.cluster.learners.scoring import scorers
from tandem.cluster.learners.shards import shard_by_tokens
from tandem.cluster.learners.stacks import Whereabouts, stacks_of
from tandem.cluster.learners.training import SealedVersion, Training
from tandem.cluster.learners.turns import Turn, Turns
from tandem.cluster.learners.worker import LearnerWorker
from tandem.cluster.logprobs.pool import Score
from tandem.cluster.metrics import recording
from tandem.cluster.placement import Placement
from tandem.cluster.processes.ray_failures import stage_error
from tandem.cluster.processes.waiting import WAIT_PERIOD_S, OnWait, wait_on
from tandem.cluster.telemetry.context import current_ids
from tandem.cluster.telemetry.setup import Telemetry
from tandem.rl.gradient_step.size import StepSize

if TYPE_CHECKING:
    from tandem.rl.config import Objective
    from tandem.rl.errors import LoraLimitError, OutOfMemoryError, StepError
    from tandem.rl.packing import PackedSequence
    from tandem.rl.traces.recording import StepTrace
    from tandem.rl.version_probe import VersionProbe

logger = logging.getLogger(__name__)
WRITERS = 4  # checkpoints that a learner writes at once


class LearnerGroup:
    """The learners of one base model, which several jobs use by turns.

        group = LearnerGroup(base, artifacts_root, deadlines)
        with group.training(job, num_tokens) as training:
            training.load(digest)                # starts the actors if they aren't running
            ...

    Calls that all learners make together need the job's turn (`Training` sees to it), so that they reach all learners
    in the same order. After any failure of one, and after an exception of `on_wait`, the actors are gone, because
    their process group can't be trusted. The next `load` starts new ones.
    """

    def __init__(
        self,
        base: BaseModelConfig,
        artifacts_root: str,
        deadlines: DeadlinesConfig,
        places: LearnerPlaces | None = None,
        telemetry: Telemetry | None = None,
        tinker: TinkerConfig | None = None,
        placement: Placement | None = None,
    ):
        """Prepare a group; `start` starts it. Without `places`, each learner takes the GPUs of its configuration.

        `tinker` limits the memory of runs. `placement` says who shares GPUs with the learners.
        """
        self._base, self._artifacts_root, self._deadlines = base, artifacts_root, deadlines
        self._placement = placement
        self._telemetry, self._tinker = telemetry, tinker or TinkerConfig()
        self._places = places or LearnerPlaces(base, deadline_s=deadlines.start_learners_s)
        self.turns = Turns()
        self._memory = StepMemory()
        self._gpu_faults = GpuFaults()
        self._lock = threading.Lock()  # guards the next one, and the return of places
        self._workers: list[Any] = []
        self._where: list[Whereabouts] = []  # the workers are
        self._watch: ProgressWatch | None = None
        self._is_ready = False
        self._calling = threading.Lock()
        """Held while several learners are called, so that calls of two threads reach all of them in one order."""

    @property
    def step_size(self) -> StepSize:
        return self._base.learners.step_size

    @property
    def waiting_for(self) -> str | None:
        """Text about the resources or engines that are missing to start the learners."""
        return self._places.waiting_for

    @property
    def is_running(self) -> bool:
        return bool(self._workers)

    @property
    def is_ready(self) -> bool:
        """True if the learners have started, and none has been lost as far as is known."""
        return self._is_ready

    def states(self) -> list[LearnerState]:
        """Return the state of each learner that runs, within a second or so."""
        workers, places = self._workers, self._where
        return learner_states(workers, places, WATCHING) if self._is_ready else []

    def has(self, workers: list[Any]) -> bool:
        """Return whether these actors, from `load`, are still the group's."""
        return workers is self._workers

    def training(self, job: str, num_tokens: int, warn: Warn = no_warning, clock: PhaseClock | None = None) -> Training:
        """Return the training of a job that has this many tokens, to be used as a context manager.

        `warn` takes the data of warnings that the job's user should see. `clock` measures the phases of the job.
        """
        measured, count = clock or PhaseClock(), self._base.learners.count
        turn = self.turns.join(num_tokens, lambda has_learners: measured.has_learners(count if has_learners else 0))
        return Training(self, job, turn, warn, measured)

    def start(self, on_wait: OnWait = wait_on) -> None:
        """Place and start the learners. Raise StageError if the cluster has no room for them before the deadline."""
        if self._is_ready:
            return
        began = time.monotonic()
        settings, count = self._base.learners, self._base.learners.count
        try:
            strategies = self._places.take(on_wait, self._gpu_faults.selector)
            self._workers = [self._start_worker(rank, strategy) for rank, strategy in enumerate(strategies)]
            deadline_s = self._deadlines.start_learners_s
            self._where = self._call(
                self._workers, "start_learners", deadline_s, on_wait, lambda w, _: w.whereabouts.remote()
            )
            meeting = None
            if count > 1:
                [meeting] = self._call(
                    self._workers[:1], "start_learners", deadline_s, on_wait, lambda w, _: w.rendezvous.remote()
                )
            # A rank waits for its peers no longer than the slowest stage may take.
            timeout_s = max(deadline_s, self._deadlines.step_s)
            devices = self._call(
                self._workers, "start_learners", deadline_s, on_wait, lambda w, _: w.start.remote(meeting, timeout_s)
            )
            self._where = self._call(  # again, with the UUIDs of GPUs
                self._workers, "start_learners", deadline_s, on_wait, lambda w, _: w.whereabouts.remote()
            )
            self._watch = ProgressWatch(self._workers, self._deadlines.step_progress_s, WATCHING)
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

    def load(self, digest: str, job: str, on_wait: OnWait = wait_on, fresh_optimizer: bool = False) -> list[Any]:
        """Begin a job's training on every learner, from its memory or the checkpoint. Return the actors.

        Raises StageError, and keeps the learners running, for LoRA settings beyond the limits.
        """
        workers, deadline_s, ids = self._workers, self._deadlines.load_s, current_ids()
        refused: list[LoraLimitError | None] = self._call(
            workers,
            "load",
            deadline_s,
            on_wait,
            lambda worker, _: worker.load.remote(digest, job, fresh_optimizer, ids),
        )
        if refused[0] is not None:
            remedy = "Allow it in the configuration of the base model, or register a model with other settings."
            raise StageError("load", f"{refused[0]}.", remedy)
        return workers

    def step(
        self,
        workers: list[Any],
        sequences: Sequence[PackedSequence],
        loss: Objective,
        learning_rate: float,
        logprob_chunk_size: int,
        job: str,
        on_wait: OnWait = wait_on,
        warn: Warn = no_warning,
    ) -> dict[str, float]:
        """Take one gradient step of a job, over shorter rows where the memory doesn't suffice for these.

        Raises StageError, and keeps the learners running, if the step diverges or a single sequence doesn't fit.
        """

        def take(rows: Sequence[PackedSequence], loss: Objective, rate: float, chunk_size: int) -> dict[str, float]:
            shards = shard_by_tokens(rows, len(workers))
            try:
                results: list[dict[str, float] | StepError | OutOfMemoryError] = self._call(
                    workers,
                    "step",
                    self._deadlines.step_s,
                    on_wait,
                    lambda worker, rank: worker.step.remote(shards[rank], loss, rate, chunk_size, job),
                    Watched.of_job(job),
                )
            except StageError as error:
                if shortage := shortage_behind(error):
                    raise shortage from error
                raise
            if shortage := first_shortage(results):
                raise shortage
            if not isinstance(results[0], dict):
                raise StageError("step", str(results[0]), NO_VERSION) from results[0]
            return results[0]

        return self._memory.step(take, sequences, loss, learning_rate, logprob_chunk_size, warn)

    def base_probe(self, on_wait: OnWait = wait_on) -> VersionProbe:
        """Return the base model's logprobs of the probe. The learners must be running."""
        first, deadline_s = self._workers[:1], self._deadlines.load_s
        probe: VersionProbe = self._call(first, "load", deadline_s, on_wait, lambda w, _: w.base_probe.remote())[0]
        return probe

    def probe_version(self, digest: str, on_wait: OnWait = wait_on) -> VersionProbe:
        """Return the logprobs of the probe under any version. The learners must be running.

        Raises the RLError or OSError of a version that can't be scored; the learners keep running.
        """
        first, deadline_s = self._workers[: self._base.learners.shard], self._deadlines.load_s
        found: list[VersionProbe | Exception] = self._call(
            first, "load", deadline_s, on_wait, lambda w, _: w.probe_version.remote(digest)
        )
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def scorers(self, workers: list[Any], digest: str, logprob_chunk_size: int) -> list[Score]:
        """Return the scorers of the learners, for a `LogprobPool`, under any version: one per copy of the weights."""
        return scorers(workers, self._base.learners.shard, digest, logprob_chunk_size, self._calling)

    def finish(self, workers: list[Any], job: str, on_wait: OnWait = wait_on) -> StepError | None:
        """Hold the job's state ready for `save`. Return why it can't be used, or None if it can."""
        writer, deadline_s = workers[: self._base.learners.shard], self._deadlines.checkpoint_s
        fault: StepError | None = self._call(
            writer, "checkpoint", deadline_s, on_wait, lambda worker, _: worker.finish.remote(job)
        )[0]
        return fault

    def seal(
        self,
        workers: list[Any],
        metadata: dict[str, str | int],
        job: str,
        turn: Turn,
        on_wait: OnWait = wait_on,
    ) -> SealedVersion:
        """Name the finished state of a job before `save` writes it. Needs no turn; failures are as in `save`."""
        sealing = workers[0].seal.options(num_returns=2, concurrency_group=WRITING)
        digest, files = sealing.remote(metadata, job)
        return SealedVersion(self._written(digest, workers, turn, on_wait), files)

    def save(
        self,
        workers: list[Any],
        metadata: dict[str, str | int],
        job: str,
        turn: Turn,
        on_wait: OnWait = wait_on,
    ) -> str:
        """Write the finished state of a job as a durable checkpoint and return its digest. Needs no turn.

        The job's training has ended with it. Failures are as in `write`.
        """
        digest = self.write(workers, metadata, job, turn, on_wait)
        for worker in workers:
            worker.keep.remote(digest, job)
        return digest

    def write(
        self,
        workers: list[Any],
        metadata: dict[str, str | int],
        job: str,
        turn: Turn,
        on_wait: OnWait = wait_on,
    ) -> str:
        """Write a finished state as a durable checkpoint and return its digest. Needs no turn.

        A failed or abandoned write leaves the learners running, unless they are lost or the deadline has passed.
        """
        writing = workers[0].write.options(concurrency_group=WRITING).remote(metadata, job)
        digest: str = self._written(writing, workers, turn, on_wait)
        return digest

    @property
    def count(self) -> int:
        return self._base.learners.count

    @property
    def workers(self) -> list[Any]:
        """The actors that run at present, as `load` returns them."""
        return self._workers

    def call_all(
        self,
        workers: list[Any],
        stage: str,
        on_wait: OnWait,
        call: Callable[[Any], Any],
        watched_for: Watched | None = None,
    ) -> list[Any]:
        """Return the results of the same call to each of these actors. The caller has the turn.

        Args:
            stage: the stage whose deadline and name hold.
            call: makes the call to an actor.
            watched_for: end the learners when one makes no progress in this work, as in a gradient step.
        """
        deadline_s = getattr(self._deadlines, _DEADLINE_OF[stage])
        return self._call(workers, stage, deadline_s, on_wait, lambda w, _: call(w), watched_for)

    def traces(self, workers: list[Any], job: str) -> Callable[[], StepTrace]:
        """Ask the learners for their traces of a job, beside the steps of others. Return a function that waits."""
        calls = [worker.traces.options(concurrency_group=WRITING).remote(job) for worker in workers]

        def wait() -> StepTrace:
            from tandem.rl.traces.recording import StepTrace

            return StepTrace.joined(ray.get(calls, timeout=self._deadlines.checkpoint_s))

        return wait

    def _written(self, call: Any, workers: list[Any], turn: Turn, on_wait: OnWait) -> Any:
        """Return the result of a call that runs beside the steps of other jobs."""
        deadline_s = self._deadlines.checkpoint_s
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
            if workers is not self._workers or self.turns.is_held_by_another(turn):
                raise LearnersLostError("The learners ended during the work for another job.") from error
            self.stop()
            raise stage_error("checkpoint", "a learner", error) from error

    def free_memory(self) -> None:
        """Give cached memory of the GPUs back. Ends the learners if they don't in time. Call it between steps."""
        if not self._workers:
            return
        try:
            self._call(
                self._workers, "load", self._deadlines.load_s, wait_on, lambda worker, _: worker.free_memory.remote()
            )
        except (StageError, LearnersLostError) as error:  # ended, they hold none; the next job starts others
            logger.warning("The learners of %s didn't free their memory: %s", self._base.name, error)

    def stop(self) -> None:
        """End the actors and release their resources."""
        with self._lock:
            workers, self._workers, self._is_ready = self._workers, [], False
            self._where = []
            recording.set_gauge("tandem_learners_running", 0, base_model=self._base.name)
            for worker in workers:
                ray.kill(worker)
            self._places.give_back()

    def _start_worker(self, rank: int, strategy: PlacementGroupSchedulingStrategy) -> Any:
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

    def _call(
        self,
        workers: list[Any],
        stage: str,
        deadline_s: float,
        on_wait: OnWait,
        call: Callable[[Any, int], Any],
        watched_for: Watched | None = None,
    ) -> list[Any]:
        """Return the results of a call to each worker."""
        if not workers:
            raise LearnersLostError("The learners have just ended. This job begins again.")
        with self._calling:
            refs = [call(worker, rank) for rank, worker in enumerate(workers)]
        return self._gather(workers, stage, deadline_s, on_wait, refs, watched_for)

    def _gather(
        self,
        workers: list[Any],
        stage: str,
        deadline_s: float,
        on_wait: OnWait,
        refs: list[Any],
        watched_for: Watched | None = None,
    ) -> list[Any]:
        """Return all results in order. The first failure of a rank ends the wait: its peers may be stuck in a
        collective."""
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
            if workers[0] not in self._workers:
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

    def _stall(self, stalled: Sequence[Rank], places: Sequence[Whereabouts], work: Watched) -> StageError:
        """Return the error of ranks that make no progress, after their stacks were kept as an artifact of the work."""
        found = zip(places, stacks_of(places), strict=True)
        stacks = "\n".join(f"Learner {rank}, {place}:\n{text}" for rank, (place, text) in enumerate(found))
        key = job_artifact_key(work.owner, work.new_file())
        try:
            Artifacts(self._artifacts_root).write_blob(key, stacks.encode())
            kept = f"The stacks of all learners are in the artifact {key}."
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
