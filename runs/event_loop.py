"""`asyncio.run` for programs that run user code: ending never waits long for it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine
from typing import NoReturn, TypeVar

Result = TypeVar("Result")
CANCEL_S = 2.0
THREADS_S = 0.5


def run_with_short_end(main: Coroutine[None, None, Result]) -> Result:
    """Return or raise the outcome of `main`.

    Remaining tasks are then cancelled and asynchronous generators closed, with CANCEL_S each to clean up. A rollout
    may swallow its cancellation or block in a thread of `asyncio.to_thread`, and `asyncio.run` would wait for either
    without limit.
    """
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left, timeout=CANCEL_S))
        closing = loop.create_task(loop.shutdown_asyncgens())
        loop.run_until_complete(asyncio.wait({closing}, timeout=CANCEL_S))
        loop.set_exception_handler(lambda _loop, _context: None)  # it would log tasks that are destroyed while pending
        loop.close()


def exit_process(status: int) -> NoReturn:
    """Exit, without waiting for threads that keep running: Python would wait, and their results aren't needed."""
    sys.stdout.flush()
    sys.stderr.flush()
    others = [thread for thread in threading.enumerate() if not thread.daemon]
    others.remove(threading.main_thread())
    for thread in others:
        thread.join(THREADS_S / len(others))
    if any(thread.is_alive() for thread in others):
        os._exit(status)
    sys.exit(status)
