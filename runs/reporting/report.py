"""The interface to which a run reports its progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tandem.runs.ledger import Row


@dataclass
class Progress:
    """The current activity, for a status line."""

    num_jobs: int = 0
    num_trained: int = 0
    version: int = 0
    rolling_batch: int | None = None
    """The newest batch that is being rolled out."""
    num_groups: int = 0
    num_groups_done: int = 0
    training_batch: int | None = None
    num_steps: int = 0
    num_steps_done: int = 0
    evaluating: int | None = None
    """The version that is being evaluated."""


class Report(Protocol):
    progress: Progress

    def say(self, sentence: str) -> None:
        """Report something that the user should know."""

    def row(self, row: Row) -> None:
        """Report a version that was trained or evaluated and is in the ledger."""
