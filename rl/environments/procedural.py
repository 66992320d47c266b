"""Random tasks, drawn on demand and reproducibly, in disjoint splits."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar, overload
from zlib import crc32

from tandem.rl.environments.base import Split

T = TypeVar("T")

EVAL_SHARE = 8
"""One in this many distinct tasks belongs to eval."""
MAX_DRAWS = 1000


class DrawnTasks(Sequence[T]):
    """`size` tasks of one split. Task i has a random generator of its own, so it depends on the seed alone.

    A task's key determines its split, so train and eval share no task, whatever the seeds and sizes. Tasks may repeat
    within a split.

    Args:
        draw: draws a task.
        split: the split whose tasks to keep.
        size: number of tasks.
        seed: selects the tasks, within the same splits.
        key: tasks with equal keys belong to the same split; keys are compared by their repr.
    """

    def __init__(
        self,
        draw: Callable[[random.Random], T],
        split: Split,
        size: int,
        seed: int = 0,
        key: Callable[[T], Hashable] = lambda task: task,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}.")
        self._draw, self._split, self._size, self._seed, self._key = draw, split, size, seed, key

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        chosen = range(self._size)[index]
        return self._task(chosen) if isinstance(chosen, int) else [self._task(item) for item in chosen]

    def _task(self, index: int) -> T:
        rng = random.Random(f"{self._seed}/{self._split}/{index}")
        for _ in range(MAX_DRAWS):
            task = self._draw(rng)
            held_out = crc32(repr(self._key(task)).encode()) % EVAL_SHARE == 0
            if held_out == (self._split == "eval"):
                return task
        raise ValueError(f"None of {MAX_DRAWS} drawn tasks belongs to {self._split}: there are too few distinct tasks.")
