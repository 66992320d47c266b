"""What SIGINT (Ctrl-C) and SIGTERM do to a process that runs the service."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType

LOOK_S = 0.1


class StopSignals:
    """The first signal asks the service to end in order, the second to end at once; further ones are ignored.

        stop = StopSignals()
        stop.listen()
        ... stop.check() ...        # between the steps of the start
        stop.wait()

    The first one raises nothing where it arrives: a start that is torn in the middle would leave processes behind.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first one that came."""

    def listen(self) -> None:
        """Takes the signals over; again after Ray has started, which sets a handler of its own."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def check(self) -> None:
        """Raises KeyboardInterrupt once a signal has come."""
        if self.signal is not None:
            raise KeyboardInterrupt

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether a signal has come, or comes by then."""
        # Not an Event: a wait doesn't end when the signal comes just before it begins, and the handler, which runs in
        # this same thread, would wait for ever for the Event's lock if it came while that is held here.
        end = time.monotonic() + timeout_s if timeout_s is not None else math.inf
        while self.signal is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(LOOK_S, left))
        return self.signal is not None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            return
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt
