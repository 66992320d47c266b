"""The size of a gradient step: how many packed rows of a job it takes.

    for rows in StepSize(tokens=65_536).split(rows_of_the_job): ...

The rows decide the optimisation, whoever computes them: how many learners share a step changes neither its rows nor
the number of steps. Memory depends on the length of a row, because learners compute the rows of a step one by one.
Importing this needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Row(Protocol):
    """A packed row, as far as the size of a step depends on it."""

    @property
    def num_trained_tokens(self) -> int:
        """Trained tokens, the denominator of the loss."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class StepSize:
    """A number of rows, a number of trained tokens, or with neither the whole job."""

    rows: int | None = None
    tokens: int | None = None
    """A step takes rows until they have at least as many trained tokens."""

    def split(self, rows: Sequence[R]) -> list[list[R]]:
        """Return the rows of each gradient step, in order. The last step may be smaller than the others."""
        steps: list[list[R]] = []
        num_tokens = 0
        for row in rows:
            if not steps or self._is_full(len(steps[-1]), num_tokens):
                steps.append([])
                num_tokens = 0
            steps[-1].append(row)
            num_tokens += row.num_trained_tokens
        return steps

    def _is_full(self, num_rows: int, num_tokens: int) -> bool:
        return (self.rows is not None and num_rows >= self.rows) or (
            self.tokens is not None and num_tokens >= self.tokens
        )
