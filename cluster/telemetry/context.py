"""The ids of what a thread or task works for. Log lines have them, and calls of other processes carry them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import ParamSpec, TypeVar

FIELDS = ("request_id", "job_id", "attempt", "model_id", "version", "trace_id")
"""Names of the ids, in the order of a line."""
TRACEPARENT = "traceparent"
"""Travels with the ids: the span (W3C trace context) below which other processes put theirs."""

P = ParamSpec("P")
T = TypeVar("T")
Ids = Mapping[str, str | int]
_NONE: Ids = {}
_ids: ContextVar[Ids] = ContextVar("tandem_ids", default=_NONE)


@contextmanager
def logged_with(**ids: str | int | None) -> Iterator[None]:
    """Give these ids, beside those that hold already, to all lines and calls of the block. None is left out."""
    token = _ids.set({**_ids.get(), **{name: value for name, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _ids.reset(token)


def current_ids() -> dict[str, str | int]:
    """Return the ids that hold here, to be sent with a call: the other process uses `logged_with(**ids)`."""
    return dict(_ids.get())


def in_this_context(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function for another thread, which has no ids of its own. For one call."""
    context = copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.run(function, *args, **kwargs)

    return run
