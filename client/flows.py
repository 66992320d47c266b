"""The building blocks of operations: a request with its result, and several requests one after another.

They do no input or output themselves, so both clients share them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from tandem.client.errors import WaitTimeoutError
from tandem.client.records import Page

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and the function that makes its result from the answer's JSON or bytes."""

    method: str
    path: str
    parse: Callable[[Any], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_safe: bool = False
    """It can be repeated without a second effect. Every GET can."""
    is_json: bool = True
    takes_response: bool = False
    """`parse` gets httpx's response, with its headers."""
    accepts: tuple[int, ...] = ()
    """Statuses besides 2xx whose answer is a result."""


@dataclass(frozen=True)
class Pause:
    """A wait before the next request of a flow."""

    seconds: float


@dataclass(frozen=True)
class Item(Generic[T]):
    """A value that a flow returns to its caller."""

    value: T


Flow: TypeAlias = Generator[Call[Any] | Pause | Item[T], Any, None]
"""Several requests, one after another: it yields calls and receives their results, and yields items in between."""


def pages(path: str, parse: Callable[[Mapping[str, Any]], T], **params: Any) -> Flow[T]:
    """Iterate over a list, page by page."""
    after: str | None = None
    while True:
        page: Page[T] = yield Call("GET", path, Page.parser(parse), given(after=after, limit=100, **params))
        for item in page.data:
            yield Item(item)
        if not page.has_more:
            return
        after = page.last_id


def pauses() -> Generator[float]:
    """Iterate over growing pauses between polls."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)


class Deadline:
    """The end of a wait for something, or none."""

    def __init__(self, timeout_s: float | None, awaited: str):
        self._timeout_s, self._awaited = timeout_s, awaited
        self._at = None if timeout_s is None else time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        return float("inf") if self._at is None else max(0.0, self._at - time.monotonic())

    def check(self) -> None:
        """Raise WaitTimeoutError if the time is up."""
        if not self.remaining_s():
            raise WaitTimeoutError(f"Waited {self._timeout_s:g} s for {self._awaited}, which didn't come.")


def given(**params: Any) -> dict[str, Any]:
    """Return the parameters that aren't None."""
    return {name: value for name, value in params.items() if value is not None}
