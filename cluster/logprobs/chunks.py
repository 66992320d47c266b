"""The queue of a scoring: it assigns chunks to scorers, takes their results, and repeats what has to be repeated.

Plain bookkeeping, without threads or clocks. `pool` calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import ceil
from typing import TYPE_CHECKING

from tandem.cluster.config import LogprobsConfig

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.rl.packing import PackedSequence

CHUNKS_PER_SCORER = 4  # at least, if there are enough rows, so that all scorers finish at about the same time
OVERDUE_FACTOR = 2.0  # times the slowest pace seen


class Kind(Enum):
    LEARNER = "learner"
    ENGINE = "engine"


@dataclass(eq=False)
class Task:
    """A chunk to score once, by a scorer of one of `kinds`. A chunk of the sample is two tasks, one of each kind."""

    rows: tuple[int, ...]
    """Indices of packed rows."""
    num_tokens: int
    kinds: set[Kind]
    twin: Task | None = None
    """The same chunk's task of the other kind."""
    runners: dict[str, tuple[Kind, float]] = field(default_factory=dict)
    """The scorers that work on the chunk: the kind of each, and when it took the chunk."""
    done_by: Kind | None = None
    results: list[Tensor] | None = None


class ChunkQueue:
    """Chunks of packed rows, assigned to scorers of either kind.

    A task goes to the first scorer that is free. A task that takes too long is also given to a second scorer, and the
    first result counts. The sample comes first, so that a disagreement is found before much work is wasted.
    """

    def __init__(self, rows: Sequence[PackedSequence], scorers: Sequence[Kind], settings: LogprobsConfig):
        """`scorers`: the kind of each scorer."""
        self._settings = settings
        self._slowest_s_per_token = 0.0
        kinds = set(scorers)
        are_both = len(kinds) == len(Kind)
        worker_kinds = {Kind.ENGINE} if are_both and settings.mode == "engine" else kinds
        chunks = _chunks(rows, settings.chunk_tokens, len(scorers))
        num_sampled = ceil(settings.sample_fraction * len(chunks)) if are_both else 0
        sampled = {index * len(chunks) // num_sampled for index in range(num_sampled)}
        self.tasks: list[Task] = []
        for index in sorted(range(len(chunks)), key=lambda index: index not in sampled):
            num_tokens = sum(rows[row].num_tokens for row in chunks[index])
            if index in sampled:
                pair = [Task(chunks[index], num_tokens, {kind}) for kind in Kind]
                pair[0].twin, pair[1].twin = pair[1], pair[0]
                self.tasks += pair
            else:
                self.tasks.append(Task(chunks[index], num_tokens, set(worker_kinds)))

    @property
    def is_done(self) -> bool:
        return all(task.done_by for task in self.tasks)

    def take(self, scorer: str, kind: Kind, now: float) -> Task | None:
        """Return the next task for a scorer that is free; None when there is nothing for it at present."""
        open_tasks = [task for task in self.tasks if not task.done_by and kind in task.kinds]
        waiting = [task for task in open_tasks if not task.runners]
        overdue = [task for task in open_tasks if scorer not in task.runners and self._is_overdue(task, now)]
        task = next(iter(waiting or overdue), None)
        if task:
            task.runners[scorer] = kind, now
        return task

    def finish(self, task: Task, scorer: str, kind: Kind, results: list[Tensor], now: float) -> bool:
        """Take the results of a task from a scorer. Return False if they aren't needed any more."""
        runner = task.runners.pop(scorer, None)
        if runner is None or task.done_by:
            return False
        self._slowest_s_per_token = max(self._slowest_s_per_token, (now - runner[1]) / task.num_tokens)
        task.done_by, task.results = kind, results
        return True

    def give_back(self, task: Task, scorer: str) -> None:
        """Release the task of a scorer that failed, so that others may take it at once."""
        task.runners.pop(scorer, None)

    def end_kind(self, kind: Kind, discard: bool = False) -> int:
        """Give no more tasks to this kind of scorer; the other kind takes what is left.

        With `discard`, the other kind also repeats what this kind has done. Return the number of tokens whose results
        were discarded.
        """
        num_discarded = self.tokens_by(kind) if discard else 0
        self.tasks = [
            task for task in self.tasks if not (task.twin and task.kinds == {kind} and (discard or not task.done_by))
        ]
        for task in self.tasks:
            if discard and task.done_by is kind:
                task.done_by = task.results = None
            if not task.done_by:
                task.kinds = set(Kind) - {kind}
                task.runners = {name: runner for name, runner in task.runners.items() if runner[0] is not kind}
        return num_discarded

    def tokens_by(self, kind: Kind) -> int:
        return sum(task.num_tokens for task in self.tasks if task.done_by is kind)

    def _is_overdue(self, task: Task, now: float) -> bool:
        allowed_s = max(self._settings.takeover_s, OVERDUE_FACTOR * self._slowest_s_per_token * task.num_tokens)
        return all(now - began > allowed_s for _, began in task.runners.values())


def _chunks(rows: Sequence[PackedSequence], chunk_tokens: int, num_scorers: int) -> list[tuple[int, ...]]:
    """Return neighbouring rows in chunks of up to `chunk_tokens`, or fewer if that would leave scorers idle."""
    total = sum(row.num_tokens for row in rows)
    limit = min(chunk_tokens, total // (CHUNKS_PER_SCORER * num_scorers))
    chunks: list[list[int]] = []
    size = 0
    for index, row in enumerate(rows):
        if chunks and size + row.num_tokens <= limit:
            chunks[-1].append(index)
            size += row.num_tokens
        else:
            chunks.append([index])
            size = row.num_tokens
    return [tuple(chunk) for chunk in chunks]
