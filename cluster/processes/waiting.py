"""The way to give up a wait that is deep inside a call."""

from __future__ import annotations

from collections.abc import Callable

WAIT_PERIOD_S = 0.5
OnWait = Callable[[], None]
"""Called about every `WAIT_PERIOD_S` during a wait. An exception that it raises abandons the wait."""


def wait_on() -> None:
    """Wait until the deadline, whatever happens elsewhere."""
