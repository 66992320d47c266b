"""Calls with a deadline, for libraries that may wait for an answer without a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from tandem.cluster.telemetry.context import in_this_context

T = TypeVar("T")


def in_thread(call: Callable[[], T], name: str) -> Future[T]:
    """Start `call` in a daemon thread of this name, which doesn't keep the process from ending."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=in_this_context(run), name=name, daemon=True).start()
    return outcome


def within(deadline_s: float, call: Callable[[], T], name: str) -> T:
    """Return or raise what `call` does. Raise TimeoutError after `deadline_s`; the call continues in its thread."""
    outcome = in_thread(call, name)
    try:
        return outcome.result(deadline_s)
    except TimeoutError:
        if outcome.done():  # the call's own
            raise
        raise TimeoutError(f"{name}: no answer within {deadline_s:g} s") from None
