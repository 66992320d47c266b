"""What a run tells of itself while it goes on: to a terminal, to files, or to nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tandem.runs.ledger import Row


@dataclass
class Progress:
    """What is going on, for a line that is drawn again and again."""

    num_jobs: int = 0
    num_trained: int = 0
    version: int = 0
    rolling_batch: int | None = None
    """The newest batch that has groups in flight."""
    num_groups: int = 0
    num_groups_done: int = 0
    training_batch: int | None = None
    num_steps: int = 0
    num_steps_done: int = 0
    evaluating: int | None = None
    """The version."""


class Report(Protocol):
    progress: Progress

    def say(self, sentence: str) -> None:
        """Something that whoever watches should know."""

    def row(self, row: Row) -> None:
        """A version was trained or evaluated, and it stands in the ledger."""
