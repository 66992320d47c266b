"""Results that are needed again soon: the rollouts of a group share their prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Keeps the results of the `size` most recently used texts."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: OrderedDict[str, T] = OrderedDict()

    def get(self, text: str, make: Callable[[], T]) -> T:
        """Return the result for `text`, by `make` if it isn't kept. An error of `make` isn't kept."""
        if text not in self._results:
            self._results[text] = make()
            while len(self._results) > self._size:
                self._results.popitem(last=False)
        self._results.move_to_end(text)
        return self._results[text]
