"""Whether the Ray and the Serve that the service runs on are still there, for the process that has started it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future

from tandem.cli.launch import APPLICATION, ServiceLostError
from tandem.cluster.processes.deadlines import in_thread
from tandem.cluster.processes.local_ray import dead_processes
from tandem.serve.app.serve_state import application_status

logger = logging.getLogger(__name__)
MAX_SILENCES = 9  # 45 s; after 60 s without a cluster that was joined, Ray ends this process by itself


def answers() -> bool:
    """Whether Serve answers and has the application. May raise, or take for ever."""
    return application_status(APPLICATION) is not None


class ServiceWatch:
    """Notices that there is no service any more.

        watch = ServiceWatch()
        while not stop.wait(watch.PERIOD_S):
            watch.check()

    Serve may be silent for a while, as when its controller is replaced, so only silence that lasts is an end. It is
    asked in a thread, because Ray waits for ever for some answers.
    """

    PERIOD_S = 5.0

    def __init__(self, answers: Callable[[], bool] = answers):
        self._answers = answers
        self._num_silences = 0
        self._asked: Future[bool] | None = None

    def check(self) -> None:
        """Raises ServiceLostError when a part of this machine's own Ray has ended, or when Serve hasn't answered since
        MAX_SILENCES calls."""
        if dead := dead_processes():
            raise ServiceLostError(f"The service has ended, because its Ray has: {' and '.join(dead)} died.")
        has_answered = self._asked is not None and self._asked.done() and self._asked.result()
        self._num_silences = 0 if has_answered else self._num_silences + 1
        if self._num_silences > MAX_SILENCES:
            silent_s = MAX_SILENCES * self.PERIOD_S
            raise ServiceLostError(f"The service has ended: Ray Serve hasn't answered for {silent_s:g} s.")
        if self._asked is None or self._asked.done():
            self._asked = in_thread(self._ask, "service-watch")

    def _ask(self) -> bool:
        try:
            return self._answers()
        except Exception:
            logger.debug("Ray Serve doesn't answer", exc_info=True)
            return False
