"""Watches the Ray and the Ray Serve of a running service, for the process that has started it."""

from __future__ import annotations

from collections.abc import Callable

from tandem.cli.deployment import APPLICATION
from tandem.cli.repeated_question import RepeatedQuestion
from tandem.cli.startup import ServiceLostError
from tandem.cluster.processes.local_ray import dead_processes
from tandem.serve.app.serve_state import application_status

MAX_SILENCES = 9  # 45 s, because Ray ends a process that has lost the cluster it joined after 60 s


def answers() -> bool:
    """True if Serve answers and has the application. May raise, or never return."""
    return application_status(APPLICATION) is not None


class ServiceWatch:
    """Detects that the service has ended.

        watch = ServiceWatch()
        while not stop.wait(watch.PERIOD_S):
            watch.check()

    Serve may be silent for a while, for example while its controller is replaced, so only a long silence counts.
    """

    PERIOD_S = 5.0

    def __init__(self, answers: Callable[[], bool] = answers):
        self.question = RepeatedQuestion(answers, False, "service-watch")
        self._num_silences = 0

    def check(self) -> None:
        """Raise ServiceLostError when a part of this machine's own Ray has ended, or when Serve hasn't answered for
        MAX_SILENCES calls."""
        if dead := dead_processes():
            raise ServiceLostError(f"The service has ended because its Ray has died ({', '.join(dead)}).")
        self._num_silences = 0 if self.question.next_answer() else self._num_silences + 1
        if self._num_silences > MAX_SILENCES:
            silent_s = MAX_SILENCES * self.PERIOD_S
            raise ServiceLostError(f"The service has ended: Ray Serve hasn't answered for {silent_s:g} s.")
