"""A callback that can abandon a wait deep inside a call."""

from __future__ import annotations

from collections.abc import Callable

WAIT_PERIOD_S = 0.5
OnWait = Callable[[], None]
"""Called about every `WAIT_PERIOD_S` during a wait. An exception that it raises abandons the wait."""


def wait_on() -> None:
    """Do nothing, so that the wait lasts until its deadline."""
