"""A change of what an entity owns, and the sources that find changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Change:
    """One message of the stream. It says what has changed; the object itself is read from its own route."""

    entity: str
    kind: str
    """job, event, version, model or alert: the name of the message."""
    data: Mapping[str, Any]
    needs_train: bool = False
    """Only keys that may read training jobs get it."""


class Source(Protocol):
    """Finds changes of one kind of object by comparing the store with its state at the last look."""

    def look(self) -> list[Change]:
        """Return what has changed since the last look; nothing at the first one.

        Called in a thread, one call at a time. Raises NoAnswerError, and forgets nothing then.
        """
