"""Learners that make no progress within a gradient step are noticed long before the step's deadline.

Each learner says where it is (`rl.gradient_step.progress`), in a thread beside the one that computes. A row may take
ten times as long as its tokens usually take. A learner that has done its rows waits for the others: it is judged only
when all do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import ray

from tandem.cluster.errors import StageError

if TYPE_CHECKING:
    from tandem.rl.gradient_step.progress import Position

USUAL_FACTOR = 10.0  # a row may take so many times its usual time, and the first rows so many times the least time
WARM_ROWS = 3  # rows that may include compilation, or other work that is done once
ASKS_PER_QUIET = 20  # a look is a call of an actor


@dataclass
class Rank:
    """A learner as far as it is known. Times are of the caller's clock."""

    number: int
    changed_at: float
    """When its position was last seen to have changed, or the call began."""
    answered_at: float
    position: Position | None = None
    """None before the first answer to this call."""
    is_new: bool = True
    """True in the first step, which includes work that is done once."""
    is_done: bool = False
    """True once the call has returned, which is progress too: others wait for it until then."""

    @property
    def waits_for_others(self) -> bool:
        return self.position is not None and bool(self.position.work) and not self.position.num_rows

    def learn(self, position: Position, now: float) -> None:
        if self.position is None or position.mark != self.position.mark:
            self.changed_at = now
        self.position, self.answered_at = position, now

    def allowed_s(self, token_s: float, quiet_s: float) -> float:
        """Return how long it may stay where it is, if a token usually takes `token_s`."""
        at = self.position
        if at is None or not at.num_rows:
            return quiet_s * (USUAL_FACTOR if self.is_new else 1)
        if at.num_done < WARM_ROWS:
            return USUAL_FACTOR * quiet_s
        return max(quiet_s, USUAL_FACTOR * token_s * at.row_tokens)


def stalled(ranks: Sequence[Rank], now: float, quiet_s: float) -> list[Rank]:
    """Return the ranks that have made no progress for too long. `ranks` are all that take the same step."""
    token_s = max((rank.position.token_s for rank in ranks if rank.position), default=0.0)
    pending = [rank for rank in ranks if not rank.is_done]
    working = [rank for rank in pending if not rank.waits_for_others]
    if not working:
        silent_s = now - max((rank.changed_at for rank in ranks), default=now)
        return [rank for rank in pending if silent_s > rank.allowed_s(token_s, quiet_s)]
    return [rank for rank in working if now - rank.changed_at > rank.allowed_s(token_s, quiet_s)]


def description(rank: Rank, now: float, quiet_s: float) -> str:
    """Say where a learner has stopped."""
    at = rank.position
    if at is None:
        where = "before its first row"
    elif at.num_rows:
        where = f"in row {at.row + 1} of {at.num_rows} ({at.row_tokens} tokens, {at.work})"
    else:
        where = f"in {at.work}, after its rows" if at.work else "between two steps"
    silent_s = now - rank.answered_at
    answers = f"; it hasn't answered for {silent_s:.0f} s" if silent_s > max(1.0, quiet_s / 2) else ""
    return f"has been {where} for {now - rank.changed_at:.0f} s{answers}"


class ProgressWatch:
    """Watches the steps of the learners of a group.

    watch = ProgressWatch(workers, deadlines.step_progress_s, "watching")
    watch.begin()                            # a step
    while pending:
        ...
        stalled = watch.look(pending)
    watch.completed()
    """

    def __init__(self, workers: Sequence[Any], quiet_s: float, concurrency_group: str):
        self._workers, self._quiet_s, self._concurrency_group = workers, quiet_s, concurrency_group
        self._is_new = True
        self.begin()

    def begin(self) -> None:
        now = time.monotonic()
        self._ranks = [Rank(number, now, now, is_new=self._is_new) for number in range(len(self._workers))]
        self._asked: dict[int, Any] = {}
        self._next_ask = now + self._quiet_s / ASKS_PER_QUIET

    def completed(self) -> None:
        self._is_new = False

    def look(self, pending: Sequence[Any]) -> list[Rank]:
        """Return the ranks among the workers in `pending` that have made no progress for too long. Doesn't wait."""
        now = time.monotonic()
        for rank, worker in zip(self._ranks, self._workers, strict=True):
            if not rank.is_done and worker not in pending:
                rank.is_done, rank.changed_at = True, now
        for number, ref in list(self._asked.items()):
            if ray.wait([ref], timeout=0)[0]:
                del self._asked[number]
                try:
                    self._ranks[number].learn(ray.get(ref), now)
                except ray.exceptions.RayError:
                    continue  # the step itself fails with the cause
        if now >= self._next_ask:
            self._next_ask = now + self._quiet_s / ASKS_PER_QUIET
            for number, worker in enumerate(self._workers):
                if number not in self._asked:
                    self._asked[number] = worker.progress.options(concurrency_group=self._concurrency_group).remote()
        return stalled(self._ranks, now, self._quiet_s)


@dataclass(frozen=True)
class Watched:
    """The work whose progress is watched."""

    owner: str
    """The job or model whose artifacts have the stacks of learners that stall."""
    attempt: str | None = None
    """Of a job; None for a call of a client, whose model is the owner."""

    @property
    def kind(self) -> str:
        return "model" if self.attempt is None else "job"

    @classmethod
    def of_job(cls, job: str) -> Watched:
        """Return the work of a job, named ID or ID/ATTEMPT."""
        id, _, attempt = job.partition("/")
        return cls(id, attempt or "1")

    def new_file(self) -> str:
        """Return a name for the stacks. Those of calls are named by the time."""
        part = f"{datetime.now(UTC):%Y%m%dT%H%M%S}" if self.attempt is None else f"of_attempt_{self.attempt}"
        return f"stacks_{part}.txt"


def stall_error(culprits: Sequence[Rank], places: Sequence[object], quiet_s: float, stacks: str) -> StageError:
    """Return the error of a step in which ranks have stalled.

    Args:
        places: the process of each rank, culprit or not.
        stacks: a sentence that says where their stacks are.
    """
    now = time.monotonic()
    said = "; ".join(
        f"learner {rank.number} ({places[rank.number]}) {description(rank, now, quiet_s)}" for rank in culprits
    )
    return StageError(
        "step",
        f"no progress: {said}. {stacks}",
        "The next attempt starts new processes. If this repeats on one node, check it (driver, GPU, disk), and take it "
        "out of the cluster. Raise deadlines.step_progress_s if rows really take this long.",
        retryable=True,
    )
