"""How far a learner is within a gradient step, for another thread that watches it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import median

from tandem.rl.packed_rows import PackedSequence

UPDATE = "the update"
"""The sums over all learners, and the optimizer step."""
NUM_TIMED = 15
"""Rows whose median is the usual time of a token; the few that include a compilation don't count then."""


@dataclass(frozen=True)
class Position:
    """Where a learner is. Every event has a `mark` of its own."""

    mark: int = 0
    work: str = ""
    """Empty between two steps."""
    row: int = 0
    """The row in work: its index among the rows of this work."""
    num_rows: int = 0
    row_tokens: int = 0
    num_done: int = 0
    """Rows that this learner has completed, with the kernels that it has."""
    token_s: float = 0.0
    """Seconds that a token of a completed row usually takes, 0 before the first one."""


class Progress:
    """Written by the thread that computes. `position` may be read in any other one."""

    def __init__(self) -> None:
        self.position = Position()
        self._began: float | None = None  # of the row in work
        self._timed: deque[float] = deque(maxlen=NUM_TIMED)

    def over(self, rows: Iterable[PackedSequence], work: str) -> Iterator[PackedSequence]:
        """Iterate over rows, each of which is in work until the next one is asked for."""
        rows = list(rows)
        for index, row in enumerate(rows):
            self._complete_row()
            self._move(work=work, row=index, num_rows=len(rows), row_tokens=row.num_tokens)
            self._began = time.monotonic()
            yield row
        self._complete_row()

    def enter(self, work: str) -> None:
        """Begin work that has no rows; "": rest until the next step."""
        self._began = None  # a row that was abandoned
        self._move(work=work, row=0, num_rows=0, row_tokens=0)

    def restart(self) -> None:
        """Take the next rows for first ones, which include work that is done once."""
        self._move(num_done=0)

    def _complete_row(self) -> None:
        began, self._began, now = self._began, None, self.position
        if began is not None:
            self._timed.append((time.monotonic() - began) / max(1, now.row_tokens))
            self._move(num_done=now.num_done + 1, token_s=median(self._timed))

    def _move(self, **changes: int | float | str) -> None:
        self.position = replace(self.position, mark=self.position.mark + 1, **changes)  # type: ignore[arg-type]
