"""What SIGINT (Ctrl-C) and SIGTERM do to a process that runs the service."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopSignals:
    """The first signal asks the service to end in order, the second to end at once; further ones are ignored.

        stop = StopSignals()
        stop.listen()
        ... stop.check() ...        # between the steps of the start
        stop.wait()

    The first one raises nothing where it arrives: a start that is torn in the middle would leave processes behind.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.signal: signal.Signals | None = None
        """The first one that came."""

    def listen(self) -> None:
        """Takes the signals over; again after Ray has started, which sets a handler of its own."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def check(self) -> None:
        """Raises KeyboardInterrupt once a signal has come."""
        if self._asked.is_set():
            raise KeyboardInterrupt

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether a signal has come, or comes by then."""
        return self._asked.wait(timeout_s)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._asked.is_set():
            self.signal = signal.Signals(number)
            self._asked.set()
            return
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt
