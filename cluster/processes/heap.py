"""Spare Python's garbage collector the objects that stay: those of imported libraries."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

atexit.register(gc.unfreeze)  # extension modules report frozen objects as leaks at exit


def freeze_heap() -> None:
    """Exclude all existing objects from garbage collection.

    A process that imported torch or vLLM has a million objects, and the collector visits all of them repeatedly while
    new ones are created, as in parsing logprobs: that was half of the time of preparing a job.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def collection_paused() -> Iterator[None]:
    """Collect no garbage in the block, which imports large libraries and leaves little of it.

    While a process imports vLLM, the collector visits the growing heap again and again: a fifth of the import's time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
