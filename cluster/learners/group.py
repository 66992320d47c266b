"""N learners that act as one: what jobs and runs ask of them, by turns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from tandem.cluster.config import BaseModelConfig, DeadlinesConfig, TinkerConfig
from tandem.cluster.errors import LearnersLostError, StageError
from tandem.cluster.jobs.phases import PhaseClock
from tandem.cluster.learners.actors import LearnerActors
from tandem.cluster.learners.failures.progress import Watched
from tandem.cluster.learners.group_state import LearnerState
from tandem.cluster.learners.job_worker import WRITING
from tandem.cluster.learners.memory import NO_VERSION, StepMemory, Warn, first_shortage, no_warning, shortage_behind
from tandem.cluster.learners.places.learner_places import LearnerPlaces
from tandem.cluster.learners.scoring import scorers
from tandem.cluster.learners.shards import shard_by_tokens
from tandem.cluster.learners.training import SealedVersion, Training
from tandem.cluster.learners.turns import Turn, Turns
from tandem.cluster.logprobs.pool import Score
from tandem.cluster.placement import Placement
from tandem.cluster.processes.waiting import OnWait, wait_on
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
        self._base, self._deadlines = base, deadlines
        self._places = places or LearnerPlaces(base, deadline_s=deadlines.start_learners_s)
        self._actors = LearnerActors(
            base, artifacts_root, deadlines, self._places, telemetry, tinker or TinkerConfig(), placement
        )
        self._memory = StepMemory()
        self.turns = Turns()

    @property
    def step_size(self) -> StepSize:
        return self._base.learners.step_size

    @property
    def waiting_for(self) -> str | None:
        """Text about the resources or engines that are missing to start the learners."""
        return self._places.waiting_for

    @property
    def is_running(self) -> bool:
        return bool(self._actors.running)

    @property
    def is_ready(self) -> bool:
        """True if the learners have started, and none has been lost as far as is known."""
        return self._actors.is_ready

    def states(self) -> list[LearnerState]:
        """Return the state of each learner that runs, within a second or so."""
        return self._actors.states()

    def has(self, workers: list[Any]) -> bool:
        """Return whether these actors, from `load`, are still the group's."""
        return workers is self._actors.running

    def training(self, job: str, num_tokens: int, warn: Warn = no_warning, clock: PhaseClock | None = None) -> Training:
        """Return the training of a job that has this many tokens, to be used as a context manager.

        `warn` takes the data of warnings that the job's user should see. `clock` measures the phases of the job.
        """
        measured, count = clock or PhaseClock(), self._base.learners.count
        turn = self.turns.join(num_tokens, lambda has_learners: measured.has_learners(count if has_learners else 0))
        return Training(self, job, turn, warn, measured)

    def start(self, on_wait: OnWait = wait_on) -> None:
        """Place and start the learners. Raise StageError if the cluster has no room for them before the deadline."""
        self._actors.start(on_wait)

    def load(self, digest: str, job: str, on_wait: OnWait = wait_on, fresh_optimizer: bool = False) -> list[Any]:
        """Begin a job's training on every learner, from its memory or the checkpoint. Return the actors.

        Raises StageError, and keeps the learners running, for LoRA settings beyond the limits.
        """
        workers, ids = self._actors.running, current_ids()
        refused: list[LoraLimitError | None] = self._actors.call(
            workers, "load", lambda worker, _: worker.load.remote(digest, job, fresh_optimizer, ids), on_wait
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
                results: list[dict[str, float] | StepError | OutOfMemoryError] = self._actors.call(
                    workers,
                    "step",
                    lambda worker, rank: worker.step.remote(shards[rank], loss, rate, chunk_size, job),
                    on_wait,
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
        first = self._actors.running[:1]
        probe: VersionProbe = self._actors.call(first, "load", lambda w, _: w.base_probe.remote(), on_wait)[0]
        return probe

    def probe_version(self, digest: str, on_wait: OnWait = wait_on) -> VersionProbe:
        """Return the logprobs of the probe under any version. The learners must be running.

        Raises the RLError or OSError of a version that can't be scored; the learners keep running.
        """
        first = self._actors.running[: self._base.learners.shard]
        found: list[VersionProbe | Exception] = self._actors.call(
            first, "load", lambda w, _: w.probe_version.remote(digest), on_wait
        )
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def scorers(self, workers: list[Any], digest: str, logprob_chunk_size: int) -> list[Score]:
        """Return the scorers of the learners, for a `LogprobPool`, under any version: one per copy of the weights."""
        return scorers(workers, self._base.learners.shard, digest, logprob_chunk_size, self._actors.calling)

    def finish(self, workers: list[Any], job: str, on_wait: OnWait = wait_on) -> StepError | None:
        """Hold the job's state ready for `save`. Return why it can't be used, or None if it can."""
        writer = workers[: self._base.learners.shard]
        faults: list[StepError | None] = self._actors.call(
            writer, "checkpoint", lambda worker, _: worker.finish.remote(job), on_wait
        )
        return faults[0]

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
        return SealedVersion(self._beside_steps(digest, workers, turn, on_wait), files)

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
        digest: str = self._beside_steps(writing, workers, turn, on_wait)
        return digest

    @property
    def count(self) -> int:
        return self._base.learners.count

    @property
    def workers(self) -> list[Any]:
        """The actors that run at present, as `load` returns them."""
        return self._actors.running

    def call_all(
        self,
        workers: list[Any],
        stage: str,
        on_wait: OnWait,
        call: Callable[[Any], Any],
        watched_for: Watched | None = None,
    ) -> list[Any]:
        """Return the results of the same call to each of these actors, as `LearnerActors.call` does. The caller has the
        turn."""
        return self._actors.call(workers, stage, lambda worker, _: call(worker), on_wait, watched_for)

    def traces(self, workers: list[Any], job: str) -> Callable[[], StepTrace]:
        """Ask the learners for their traces of a job, beside the steps of others. Return a function that waits."""
        calls = [worker.traces.options(concurrency_group=WRITING).remote(job) for worker in workers]

        def wait() -> StepTrace:
            from tandem.rl.traces.recording import StepTrace

            return StepTrace.joined(ray.get(calls, timeout=self._deadlines.checkpoint_s))

        return wait

    def free_memory(self) -> None:
        """Give cached memory of the GPUs back. Ends the learners if they don't in time. Call it between steps."""
        if not self.is_running:
            return
        try:
            self._actors.call(self._actors.running, "load", lambda worker, _: worker.free_memory.remote())
        except (StageError, LearnersLostError) as error:  # ended, they hold none; the next job starts others
            logger.warning("The learners of %s didn't free their memory: %s", self._base.name, error)

    def stop(self) -> None:
        """End the actors and release their resources."""
        self._actors.stop()

    def _beside_steps(self, call: Any, workers: list[Any], turn: Turn, on_wait: OnWait) -> Any:
        """Return the result of a call that runs beside the steps of other jobs."""
        is_shared = partial(self.turns.is_held_by_another, turn)
        return self._actors.result_beside_steps(call, workers, is_shared, on_wait)
