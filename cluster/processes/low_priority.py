"""Work that shouldn't take processor time from others, in a thread of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from tandem.cluster.processes.deadlines import in_thread

T = TypeVar("T")
NICE = 10
"""Beside threads of normal priority on all cores, such a thread gets a tenth of a core."""


def at_low_priority(work: Callable[[], T], name: str) -> T:
    """Return or raise what `work` does. On Linux, each thread has a priority, and this thread keeps its own."""

    def run() -> T:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        return work()

    return in_thread(run, name).result()
