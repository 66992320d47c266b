"""`asyncio.run` for programs that run other people's code: its end waits for nobody for long."""

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
    """What `main` returns or raises.

    Then the tasks that it has left are cancelled and its asynchronous generators closed, which get CANCEL_S each to
    clean up. `asyncio.run` would wait for them for ever, and for each thread of `asyncio.to_thread`: a rollout may
    swallow its cancellation or block in a thread.
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
        loop.set_exception_handler(lambda _loop, _context: None)  # of tasks that are destroyed while they are pending
        loop.close()


def exit_process(status: int) -> NoReturn:
    """Ends the process, at once if threads go on: Python would wait for them, and nobody needs their results."""
    sys.stdout.flush()
    sys.stderr.flush()
    waited_for = [thread for thread in threading.enumerate() if not thread.daemon]
    waited_for.remove(threading.main_thread())
    for thread in waited_for:
        thread.join(THREADS_S / len(waited_for))
    if any(thread.is_alive() for thread in waited_for):
        os._exit(status)
    sys.exit(status)
