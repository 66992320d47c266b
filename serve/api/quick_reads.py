"""Reads of the store on the way of a completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool

from tandem.serve.store.store import Store

P = ParamSpec("P")
T = TypeVar("T")


async def read_quickly(store: Store, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `read` does: a row or two, by index, with `Database.quick_read`.

    In a local file, that takes less time than to wake a thread, and no writer holds it up. A database on the network is
    read in a thread.
    """
    if store.database.is_local:
        return read(*args, **kwargs)
    return await run_in_threadpool(read, *args, **kwargs)
