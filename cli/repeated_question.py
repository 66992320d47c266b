"""Ask a service again and again without waiting for it: some calls of Ray never return."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from tandem.cluster.processes.deadlines import in_thread

logger = logging.getLogger(__name__)
T = TypeVar("T")


class RepeatedQuestion(Generic[T]):
    """Runs each call of `ask` in a thread; `next_answer` returns the answer to the call before.

    At most one call runs at a time.
    """

    def __init__(self, ask: Callable[[], T], otherwise: T, name: str):
        """`otherwise` is the answer while there is none, and in place of an error of `ask`."""
        self._ask, self._otherwise, self._name = ask, otherwise, name
        self._running: Future[T] | None = None

    @property
    def is_open(self) -> bool:
        """True while a call runs."""
        return self._running is not None and not self._running.done()

    def next_answer(self) -> T:
        """Return the answer to the last call, and start the next call if none runs."""
        if self.is_open:
            return self._otherwise
        answer = self._otherwise if self._running is None else self._running.result()
        self._running = in_thread(self._answer, self._name)
        return answer

    def _answer(self) -> T:
        try:
            return self._ask()
        except Exception:
            logger.debug("No answer to %s", self._name, exc_info=True)
            return self._otherwise
