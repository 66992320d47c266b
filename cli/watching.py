"""Whether the Ray and the Serve that the service runs on are still there, for the process that has started it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tandem.cli.launch import APPLICATION, ServiceLostError
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
        self._has_answered = threading.Event()
        self._num_silences = 0
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Raises ServiceLostError when a part of this machine's own Ray has ended, or when Serve hasn't answered since
        MAX_SILENCES calls."""
        if dead := dead_processes():
            raise ServiceLostError(f"The service has ended, because its Ray has: {' and '.join(dead)} died.")
        self._num_silences = 0 if self._has_answered.is_set() else self._num_silences + 1
        if self._num_silences > MAX_SILENCES:
            silent_s = MAX_SILENCES * self.PERIOD_S
            raise ServiceLostError(f"The service has ended: Ray Serve hasn't answered for {silent_s:g} s.")
        if self._thread is None or not self._thread.is_alive():
            self._has_answered.clear()
            self._thread = threading.Thread(target=self._ask, name="service-watch", daemon=True)
            self._thread.start()

    def _ask(self) -> None:
        try:
            if self._answers():
                self._has_answered.set()
        except Exception:
            logger.debug("Ray Serve doesn't answer", exc_info=True)
