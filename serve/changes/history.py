"""The last messages of each entity, from which a viewer that was away catches up."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable

from tandem.serve.changes.change import Change

MAX_KEPT = 1000
"""Messages of one entity."""


class History:
    """Messages by number, counted over all entities from 1.

    The id of a message is that of this history and its number. So an id of another process, or of this one before it
    stopped looking, is recognised as unknown.
    """

    def __init__(self, max_kept: int = MAX_KEPT):
        self._name = secrets.token_hex(4)
        self._max_kept = max_kept
        self._kept: dict[str, deque[tuple[int, Change]]] = {}
        self._dropped: dict[str, int] = {}  # the number of the newest message that isn't kept any more
        self.newest = 0
        """The number of the newest message."""

    def add(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self.newest += 1
            kept = self._kept.setdefault(change.entity, deque())
            kept.append((self.newest, change))
            if len(kept) > self._max_kept:
                self._dropped[change.entity] = kept.popleft()[0]

    def id_of(self, number: int) -> str:
        return f"{self._name}-{number}"

    def number_of(self, id: str) -> int | None:
        """Return the number in the id of a message, None for an id that this history didn't give."""
        name, _, number = id.partition("-")
        if name != self._name or not (number.isascii() and number.isdigit() and len(number) < 19):
            return None
        return int(number) if int(number) <= self.newest else None

    def after(self, entity: str, number: int) -> list[tuple[int, Change]] | None:
        """Return an entity's messages after a number, with theirs. None if some of them aren't kept any more."""
        if number < self._dropped.get(entity, 0):
            return None
        newer: list[tuple[int, Change]] = []
        for kept in reversed(self._kept.get(entity, ())):
            if kept[0] <= number:
                break
            newer.append(kept)
        return newer[::-1]
