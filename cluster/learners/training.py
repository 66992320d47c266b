"""One job's training on the learners, beside those of other jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tandem.cluster.errors import LearnersLostError, StageError
from tandem.cluster.learners.memory import NO_VERSION, Warn
from tandem.cluster.learners.turns import Turn
from tandem.cluster.processes.waiting import OnWait, wait_on
from tandem.rl.gradient_step.size import StepSize

if TYPE_CHECKING:
    from tandem.cluster.jobs.phases import PhaseClock
    from tandem.cluster.learners.group import LearnerGroup
    from tandem.cluster.logprobs.pool import Score
    from tandem.rl.config import Objective
    from tandem.rl.errors import StepError
    from tandem.rl.packing import PackedSequence
    from tandem.rl.traces.recording import StepTrace
    from tandem.rl.version_probe import VersionProbe


@dataclass(frozen=True)
class SealedVersion:
    """A finished version that has its name, and isn't durable yet."""

    digest: str
    files: Any
    """Ray's reference to the adapter's files: a dict of byte arrays by name."""


class Training:
    """The state of one job on the learners of a group. Other jobs may train between its steps.

        with group.training(job, num_tokens) as training:
            training.load(digest)
            metrics = training.step(sequences, loss, learning_rate, chunk_size)
            training.finish()                    # the learners are free for other jobs
            sealed = training.seal(metadata)     # optional: name the version before it is written
            digest = training.save(metadata)

    A failure of a call ends the group's actors, because their process group can't be trusted, except in `save`. Other
    jobs then get LearnersLostError from their next call. So does this job if another one has ended the actors.
    """

    def __init__(self, group: LearnerGroup, job: str, turn: Turn, warn: Warn, clock: PhaseClock):
        self._group, self._job, self._turn, self._warn, self.clock = group, job, turn, warn, clock
        self._warned: list[Mapping[str, Any]] = []
        self._workers: list[Any] | None = None  # the actors that have this job's state
        self._fault: StepError | None = None

    def __enter__(self) -> Training:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turn.close()
        if self._workers is not None and self._group.has(self._workers):
            for worker in self._workers:
                worker.drop.remote(self._job)

    @property
    def step_size(self) -> StepSize:
        return self._group.step_size

    def start(self, on_wait: OnWait = wait_on) -> None:
        """Start the learners unless they run. Raises StageError as `LearnerGroup.start` does."""
        if not self._group.is_ready:
            self._hold(on_wait)
            self._start_group(on_wait)
            self._turn.give_back()

    def base_probe(self, on_wait: OnWait = wait_on) -> VersionProbe:
        """Return the base model's logprobs of the probe."""
        self._hold(on_wait)
        self._start_group(on_wait)
        return self._group.base_probe(on_wait)

    def probe_version(self, digest: str, on_wait: OnWait = wait_on) -> VersionProbe:
        """Return the logprobs of the probe under any version, as `LearnerGroup.probe_version` does.

        `on_wait` is called while other jobs use the learners, and while they start.
        """
        self._hold(on_wait)
        self._start_group(on_wait)
        return self._group.probe_version(digest)

    def load(
        self,
        digest: str,
        on_wait: OnWait = wait_on,
        on_wait_turn: OnWait | None = None,
        fresh_optimizer: bool = False,
    ) -> None:
        """Begin from a version, with `fresh_optimizer` from its adapter alone.

        `on_wait_turn` is called instead of `on_wait` while other jobs use the learners.
        """
        self._hold(on_wait_turn or on_wait)
        self._start_group(on_wait)
        with self.clock.phase("load"):
            self._workers = self._group.load(digest, self._job, on_wait, fresh_optimizer)

    def step(
        self,
        sequences: Sequence[PackedSequence],
        loss: Objective,
        learning_rate: float,
        logprob_chunk_size: int,
        on_wait: OnWait = wait_on,
        on_wait_turn: OnWait | None = None,
    ) -> dict[str, float]:
        """Take one gradient step over packed sequences, split over the learners by token count. Return its metrics.

        Raises StageError, and keeps the learners running, if the step diverges or a single sequence doesn't fit into
        their memory.
        """
        self._hold(on_wait_turn or on_wait)
        workers, began = self._own_workers(), time.monotonic()
        num_tokens = sum(sequence.num_tokens for sequence in sequences)
        with self.clock.phase("step"):
            metrics = self._group.step(
                workers, sequences, loss, learning_rate, logprob_chunk_size, self._job, on_wait, self._warn_once
            )
            self.clock.count(trained_tokens=num_tokens)
        self._turn.trained(num_tokens, time.monotonic() - began)
        return metrics

    def scorers(self, digest: str, logprob_chunk_size: int) -> list[Score]:
        """Return one scorer per learner, for a `LogprobPool`, under any version.

        Other jobs may train between two chunks.
        """
        scorers = self._group.scorers(self._own_workers(), digest, logprob_chunk_size)
        return [self._in_turn(score) for score in scorers]

    def finish(self, on_wait: OnWait = wait_on) -> None:
        """Take no more steps, and let other jobs have the learners. A fault of the state is raised by `save`."""
        with self.clock.phase("check_version"):
            self._fault = self._group.finish(self._own_workers(), self._job, on_wait)
        self._turn.give_back()

    def seal(self, metadata: dict[str, str | int], on_wait: OnWait = wait_on) -> SealedVersion:
        """Name the finished state, so that engines can load it while `save` makes it durable. Raises as `save` does."""
        self._check_fault()
        with self.clock.phase("seal"):
            return self._group.seal(self._own_workers(), metadata, self._job, self._turn, on_wait)

    def save(self, metadata: dict[str, str | int], on_wait: OnWait = wait_on) -> str:
        """Write the finished state as a durable checkpoint and return its digest, while other jobs train.

        Raises StageError if the state isn't finite. No failure affects other jobs, unless the writing learner is lost.
        """
        self._check_fault()
        with self.clock.phase("checkpoint"):
            digest = self._group.save(self._own_workers(), metadata, self._job, self._turn, on_wait)
        self._workers = None  # there is nothing left to drop
        return digest

    def traces(self) -> Callable[[], StepTrace]:
        """Ask the learners for what they have recorded of the traced tokens, once. Return a function that waits."""
        return self._group.traces(self._own_workers(), self._job)

    def free_memory(self) -> None:
        """Give memory that the learners keep for a next step back to their GPUs, for an engine that wakes up."""
        self._group.free_memory()

    def _hold(self, on_wait: OnWait) -> None:
        with self.clock.phase("wait_turn"):
            self._turn.hold(on_wait)

    def _start_group(self, on_wait: OnWait) -> None:
        with self.clock.phase("start_learners"):
            self._group.start(on_wait)

    def _check_fault(self) -> None:
        if self._fault is not None:
            raise StageError("checkpoint", str(self._fault), NO_VERSION) from self._fault

    def _warn_once(self, data: Mapping[str, Any]) -> None:
        if data not in self._warned:
            self._warned.append(data)
            self._warn(data)

    def _in_turn(self, score: Score) -> Score:
        def score_in_turn(rows: Sequence[PackedSequence], timeout_s: float) -> Any:
            self._turn.hold(wait_on)
            self._own_workers()
            return score(rows, timeout_s)

        return score_in_turn

    def _own_workers(self) -> list[Any]:
        """Return the actors that have this job's state. Raise LearnersLostError if they have ended."""
        if self._workers is None or not self._group.has(self._workers):
            raise LearnersLostError("The learners ended during the work for another job. This job begins again.")
        return self._workers
