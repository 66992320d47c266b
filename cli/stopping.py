"""Handling of SIGINT (Ctrl-C) and SIGTERM in a process that runs the service."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType

LOOK_S = 0.1


class StopSignals:
    """The first signal shuts the service down in order, the second at once; further ones are ignored.

        stop = StopSignals()
        stop.listen()
        ... stop.check() ...        # between the steps of the start
        stop.wait()

    The first signal raises no exception where it arrives, because an interrupted start would leave processes behind.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first one received."""

    def listen(self) -> None:
        """Install the handlers. Call this again after Ray has started, which installs its own."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def check(self) -> None:
        """Raise KeyboardInterrupt after a signal."""
        if self.signal is not None:
            raise KeyboardInterrupt

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a signal. Return True if one was received."""
        # Not an Event: a signal just before `wait` begins wouldn't end it, and the handler, which runs in this same
        # thread, would deadlock if it ran while `wait` holds the Event's lock.
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
