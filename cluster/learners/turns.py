"""Turns: which of several jobs uses the learners next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tandem.cluster.errors import LearnersLostError
from tandem.cluster.processes.waiting import WAIT_PERIOD_S, OnWait

FIRST_TOKEN_S = 1e-3  # a guess, until a gradient step has been timed
LEAST_WORK_S = 0.1
"""Smaller jobs count as this much work, because their fixed costs are as large."""
PATIENCE = 1.5
"""A job takes its turn before another one has ended if it is slowed down this many times as much. With 1, two jobs of
one size would alternate, and both would end late."""


OnChange = Callable[[bool], None]


def _unheard(has_learners: bool) -> None:
    pass


class Turns:
    """Gives the learners to one job at a time: to the one that is slowed down most.

        turn = turns.join(num_tokens)
        turn.hold(on_wait)           # before the first gradient step, and before each later one
        ...
        turn.give_back()

    A job's slowdown is the time from its arrival to its expected end, over the time that its work takes alone. So a
    small job waits for little more than one gradient step of a big one, while jobs of one size follow each other, and a
    stream of small jobs can't keep a big one waiting for long: its slowdown grows, too.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: list[Turn] = []
        self._holder: Turn | None = None
        self._token_s: float | None = None

    def join(self, num_tokens: int, on_change: OnChange = _unheard) -> Turn:
        """Return the turn of a job that trains this many tokens. The caller closes it.

        `on_change` is told whenever the job gets the learners (True) or has them no more, and must not block.
        """
        return Turn(self, num_tokens, self._clock(), on_change)

    def is_held_by_another(self, turn: Turn) -> bool:
        return self._holder not in (None, turn)

    def work_s(self, num_tokens: int) -> float:
        """Return the expected seconds of training this many tokens."""
        return num_tokens * (self._token_s or FIRST_TOKEN_S)


class Turn:
    """A job's place among those that use the learners."""

    def __init__(self, turns: Turns, num_tokens: int, arrived: float, on_change: OnChange):
        self._turns, self._arrived, self._on_change = turns, arrived, on_change
        self._total = self._left = num_tokens
        self._is_closed = False

    def hold(self, on_wait: OnWait) -> None:
        """Return when it is this job's turn, which may pass to another job before. May be called in several threads.

        Raises LearnersLostError after `close`.
        """
        turns = self._turns
        with turns._changed:
            if turns._holder is self and self._is_due_to_another():
                self._pass_on()
            turns._waiting.append(self)
        try:
            while True:
                with turns._changed:
                    if self._is_closed:
                        raise LearnersLostError("The job's training is over.")
                    if turns._holder is None and max(turns._waiting, key=Turn.slowdown) is self:
                        turns._holder = self
                        self._on_change(True)
                    if turns._holder is self:
                        return
                    turns._changed.wait(WAIT_PERIOD_S)
                on_wait()
        finally:
            with turns._changed:
                turns._waiting.remove(self)
                turns._changed.notify_all()

    def give_back(self) -> None:
        """Let another job have its turn, if this job has it."""
        with self._turns._changed:
            if self._turns._holder is self:
                self._pass_on()

    def close(self) -> None:
        with self._turns._changed:
            self._is_closed = True
            self.give_back()
            self._turns._changed.notify_all()

    def trained(self, num_tokens: int, seconds: float) -> None:
        """Count work of this job as done."""
        turns = self._turns
        with turns._changed:
            self._left = max(0, self._left - num_tokens)
            measured = seconds / max(1, num_tokens)
            turns._token_s = measured if turns._token_s is None else 0.8 * turns._token_s + 0.2 * measured

    def slowdown(self) -> float:
        """Return the seconds from the job's arrival to its end, if it had the learners from now on, over its work."""
        turns = self._turns
        age, left, total = turns._clock() - self._arrived, turns.work_s(self._left), turns.work_s(self._total)
        fixed_s = max(0.0, LEAST_WORK_S - total)  # what a small job costs besides its steps
        return (age + left + fixed_s) / max(total, LEAST_WORK_S)

    def _is_due_to_another(self) -> bool:
        return any(other.slowdown() > PATIENCE * self.slowdown() for other in self._turns._waiting)

    def _pass_on(self) -> None:
        self._turns._holder = None
        self._on_change(False)
        self._turns._changed.notify_all()
