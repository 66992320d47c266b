"""Engines that sleep while the learners execute calls, for configurations with `engine.sleep`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from tandem.cluster.jobs.engine_sleep import EnginesAsleep
from tandem.cluster.processes.waiting import OnWait


class SleepingEngines:
    """Keeps the engines asleep over several calls of a run.

    engines.need_learners()     # they sleep from now on
    engines.need_engines()      # unless somebody else needs the learners, they are awake
    """

    def __init__(self, asleep: EnginesAsleep | None, on_wait: OnWait, free_memory: Callable[[], None]):
        """Without `asleep`, engines never sleep."""
        self._asleep, self._on_wait, self._free_memory = asleep, on_wait, free_memory
        self._open = ExitStack()
        self._is_open = False

    def need_learners(self) -> None:
        """Raises StageError if running completions don't end in time."""
        if self._asleep is not None and not self._is_open:
            self._open.enter_context(self._asleep.during(self._on_wait, self._free_memory))
            self._is_open = True

    def need_engines(self) -> None:
        if self._is_open:
            self._is_open = False
            self._open.close()
