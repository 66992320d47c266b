"""One run's training on the learners, beside those of jobs and other runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tandem.cluster.errors import LearnersLostError
from tandem.cluster.learners.failures.progress import Watched
from tandem.cluster.learners.job_worker import WRITING
from tandem.cluster.learners.training import SealedVersion
from tandem.cluster.learners.turns import Turn
from tandem.cluster.learners.worker import NotHeld, RankOutput
from tandem.cluster.processes.waiting import OnWait, wait_on
from tandem.cluster.telemetry.context import current_ids

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

    from tandem.cluster.learners.group import LearnerGroup
    from tandem.rl.settings import AdamStep

BYTES_PER_TOKEN = 16
"""Of a body: a token, its target and two numbers. Only to guess a call's work before it is read."""


class RunNotHeldError(LearnersLostError):
    """The learners don't have the state of a run: it has to be made again."""


@dataclass(frozen=True)
class CallOutput:
    """The outputs of a forward_backward or forward."""

    logprobs: Sequence[NDArray[float32]]
    """Of each datum of the call in order, [N] or [N, K]."""
    sums: dict[str, float] = field(default_factory=dict)
    num_tokens: int = 0
    """Of packed rows."""


class RunTraining:
    """The state of a run on the learners of a group. Jobs and other runs may use the learners between its calls.

        training = RunTraining(group, run, model_id)
        training.called_by(on_wait, on_wait_turn)     # again with each claim
        training.open(digest)
        output = training.accumulate(body_key, num_bytes)
        metrics = training.apply_adam(step)
        training.finish(save)                         # the learners are free for others
        sealed = training.seal(save, metadata)
        digest = training.write(save, metadata)
        training.close_save(save)

    Every method but `open` raises RunNotHeldError if the state was lost, and LearnersLostError if it is lost now. A
    StageError has ended the learners. RLErrors and OSErrors of calls are raised as they are; the learners keep running.
    """

    def __init__(self, group: LearnerGroup, run: str, model_id: str):
        """`model_id`: of the run's model, whose artifacts have the stacks of learners that stall."""
        self._group, self._run, self._model_id = group, run, model_id
        self._on_wait: OnWait = wait_on
        self._on_wait_turn: OnWait = wait_on
        self._workers: list[Any] | None = None  # the actors that have this run's state
        self._turn_held: Turn | None = None
        self._seconds = 0.0  # of turns that have ended
        self._held_since: float | None = None

    def called_by(self, on_wait: OnWait, on_wait_turn: OnWait) -> None:
        """Call `on_wait` while the learners work, `on_wait_turn` while others use them and while they start."""
        self._on_wait, self._on_wait_turn = on_wait, on_wait_turn

    @property
    def seconds(self) -> float:
        """For which the run has had the learners so far, also in the turn that it has now."""
        return self._seconds + (0.0 if self._held_since is None else time.monotonic() - self._held_since)

    @property
    def is_held(self) -> bool:
        """False once the learners have lost the state as far as is known."""
        return self._workers is not None and self._group.has(self._workers)

    @property
    def num_learners(self) -> int:
        return self._group.count

    def open(self, digest: str, fresh_optimizer: bool = False) -> None:
        """Begin from a checkpoint, without an accumulated gradient. Starts the learners if they don't run.

        Raises RLError or OSError for a checkpoint that can't be used; the learners then hold no state.
        """
        self._workers = None
        ids = current_ids()
        with self._turn(0):
            self._group.start(self._on_wait_turn)
            workers = self._group.workers
            refused = self._call(workers, "load", lambda w: w.open_run.remote(self._run, digest, fresh_optimizer, ids))
            self._workers = workers
            self._without_errors(refused, is_partial=True)

    def expect(self, body_keys: Sequence[str]) -> bool:
        """Let the learners read bodies ahead, whose calls follow soon. Return whether they do."""
        if self._workers is None or not self.is_held:
            return False
        for worker in self._workers:
            for key in body_keys:
                worker.expect.options(concurrency_group=WRITING).remote(key)
        return True

    def accumulate(self, body_key: str, num_bytes: int, forward_only: bool = False) -> CallOutput:
        """Compute a call over all learners, and add its gradient to the run's unless `forward_only`.

        Raises RLError for a call that can't be computed, and OSError for a body that can't be read. The gradient is as
        before then, or the state isn't held any more.
        """
        workers = self._held()
        with self._turn(num_bytes // BYTES_PER_TOKEN) as turn:
            began = time.monotonic()
            found = self._call(
                workers, "step", lambda w: w.accumulate.remote(self._run, body_key, forward_only), is_watched=True
            )
            shares = self._without_errors(found, is_partial=len(found) > 1 and not forward_only)
            output = _joined(shares)
            turn.trained(output.num_tokens, time.monotonic() - began)
        return output

    def apply_adam(self, step: AdamStep) -> dict[str, float]:
        """Take an optimizer step. Raises RLError if the gradient isn't finite; it is gone then, too."""
        workers = self._held()
        with self._turn(0):
            found = self._call(workers, "step", lambda w: w.apply_adam.remote(self._run, step), is_watched=True)
            metrics: dict[str, float] = self._without_errors(found)[0]
        return metrics

    def discard_gradient(self) -> None:
        workers = self._held()
        with self._turn(0):
            self._without_errors(self._call(workers, "step", lambda w: w.discard_gradient.remote(self._run)))

    def finish(self, save: str) -> None:
        """Hold a copy of the state ready under the name `save`. Raises RLError if the state isn't finite."""
        workers = self._held()
        with self._turn(0):
            self._without_errors(self._call(workers, "checkpoint", lambda w: w.finish_run.remote(self._run, save)))

    def seal(self, save: str, metadata: dict[str, str | int]) -> SealedVersion:
        """Name a finished state before `write` makes it durable."""
        return self._group.seal(self._held(), metadata, save, self._no_turn(), self._on_wait)

    def write(self, save: str, metadata: dict[str, str | int]) -> str:
        """Make a finished state durable and return its digest, while the learners work for others."""
        return self._group.write(self._held(), metadata, save, self._no_turn(), self._on_wait)

    def close_save(self, save: str) -> None:
        """Let the learners forget a finished state, whether it was written or not."""
        if self._workers is not None and self.is_held:
            for worker in self._workers:
                worker.drop.remote(save)

    def forget(self) -> None:
        """Let the learners forget the state."""
        workers, self._workers = self._workers, None
        if workers is not None and self._group.has(workers):
            for worker in workers:
                worker.drop.remote(self._run)

    def free_memory(self) -> None:
        """Give memory that the learners keep back to their GPUs, for an engine that wakes up."""
        self._group.free_memory()

    @contextmanager
    def together(self, num_bytes: int) -> Iterator[None]:
        """Execute the calls of the block in one turn, so that no other run can take the place of this one in memory.

        `num_bytes`: of the bodies, all together.
        """
        with self._turn(num_bytes // BYTES_PER_TOKEN):
            yield

    @contextmanager
    def _turn(self, num_tokens: int) -> Iterator[Turn]:
        if self._turn_held is not None:
            yield self._turn_held
            return
        turn = self._group.turns.join(num_tokens)
        try:
            turn.hold(self._on_wait_turn)
            self._held_since, self._turn_held = time.monotonic(), turn
            yield turn
        finally:
            turn.close()
            self._seconds, self._turn_held, self._held_since = self.seconds, None, None

    def _no_turn(self) -> Turn:
        """Return a turn that was never held, for work beside that of others."""
        turn = self._group.turns.join(0)
        turn.close()
        return turn

    def _held(self) -> list[Any]:
        if self._workers is None or not self._group.has(self._workers):
            self._workers = None
            raise RunNotHeldError(f"The learners have no state of run {self._run}.")
        return self._workers

    def _call(self, workers: list[Any], stage: str, call: Callable[[Any], Any], is_watched: bool = False) -> list[Any]:
        watched_for = Watched(self._model_id) if is_watched else None
        return self._group.call_all(workers, stage, self._on_wait, call, watched_for)

    def _without_errors(self, found: list[Any], is_partial: bool = False) -> list[Any]:
        """Raise the error of a learner, if one returned one. `is_partial`: others may have succeeded."""
        if any(isinstance(one, NotHeld) for one in found):
            self._workers = None
            raise RunNotHeldError(f"The learners have forgotten the state of run {self._run}.")
        for one in found:
            if isinstance(one, Exception):
                if is_partial:
                    self.forget()
                raise one
        return found


def _joined(shares: Sequence[RankOutput]) -> CallOutput:
    of_datum: dict[int, NDArray[float32]] = {}
    sums: dict[str, float] = {}
    for share in shares:
        start = 0
        for index, shape in zip(share.datums, share.shapes, strict=True):
            size = shape[0] * (shape[1] if len(shape) > 1 else 1)
            of_datum[index] = share.logprobs[start : start + size].reshape(shape)
            start += size
        for name, value in share.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    logprobs = [of_datum[index] for index in sorted(of_datum)]
    return CallOutput(logprobs, sums, sum(share.num_tokens for share in shares))
