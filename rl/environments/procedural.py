"""Tasks that are drawn at random when they are asked for, the same each time, and split so that none is in both."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar, overload
from zlib import crc32

from tandem.rl.environments.base import Split

T = TypeVar("T")

EVAL_SHARE = 8
"""One in so many different tasks belongs to eval."""
MAX_DRAWS = 1000


class DrawnTasks(Sequence[T]):
    """`size` tasks of one split. Task i is drawn from a generator of its own, so it is the same for the same seed.

    Which split a task belongs to is decided by its key alone. So no task of train is one of eval, whatever the seeds
    and sizes. Tasks may repeat within a split.

    Args:
        draw: makes a task.
        split: which ones to keep.
        size: how many there are.
        seed: draws other tasks, from the same splits.
        key: tasks with the same key belong to the same split; its repr must say all that tells them apart.
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
        raise ValueError(f"None of {MAX_DRAWS} tasks drawn is one of {self._split}: there are too few different ones.")
