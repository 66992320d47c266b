"""Gradient steps of a learner group that fit into its memory: rows that were too long once are split from then on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tandem.cluster.errors import StageError
from tandem.cluster.processes.ray_failures import MORE_MEMORY

if TYPE_CHECKING:
    from tandem.rl.config import Objective
    from tandem.rl.errors import OutOfMemoryError
    from tandem.rl.gradient_step.out_of_memory import RowLimit
    from tandem.rl.packing import PackedSequence

Warn = Callable[[Mapping[str, Any]], None]
"""Takes the data of a job's warning event."""
NO_VERSION = "The job made no version; the model's newest version is the one before."
ROWS_SPLIT = "rows_split"
"""The warning's kind."""


def no_warning(data: Mapping[str, Any]) -> None:
    """Ignore the warning."""


class StepMemory:
    """Remembers the length of rows that the learners' memory suffices for, over all jobs of a group."""

    def __init__(self) -> None:
        self._limit: RowLimit | None = None  # the class needs torch

    def step(
        self,
        step: Callable[[Sequence[PackedSequence], Objective, float, int], dict[str, float]],
        rows: Sequence[PackedSequence],
        loss: Objective,
        learning_rate: float,
        chunk_size: int,
        warn: Warn,
    ) -> dict[str, float]:
        """Take a step, over shorter rows where needed. `step` raises OutOfMemoryError, and is then called again.

        Raises StageError if a single sequence doesn't fit.
        """
        from tandem.rl.errors import OutOfMemoryError
        from tandem.rl.gradient_step.out_of_memory import RowLimit, place_of, step_within_memory

        limit = self._limit = self._limit or RowLimit()
        longest = max((row.num_tokens for row in rows), default=0)
        if limit.row_tokens is not None and longest > limit.row_tokens:
            warn(_warning(longest, limit, "an earlier step ran out of memory"))

        def on_shrink(error: OutOfMemoryError) -> None:
            warn(_warning(error.row_tokens, limit, error.said))

        try:
            return step_within_memory(step, limit, rows, loss, learning_rate, chunk_size, on_shrink)
        except OutOfMemoryError as error:
            place = place_of(error, limit.rows(rows))
            cause = f"the memory of a learner doesn't suffice for {place} alone: {error.said}."
            raise StageError("step", cause, f"{MORE_MEMORY} {NO_VERSION}") from error


def first_shortage(results: Sequence[object]) -> OutOfMemoryError | None:
    """Return the error of the rank that ran out of memory, if one did: the others only know of it."""
    from tandem.rl.errors import OutOfMemoryError

    found = [result for result in results if isinstance(result, OutOfMemoryError)]
    return max(found, key=lambda error: error.row_tokens, default=None)


def shortage_behind(error: StageError) -> OutOfMemoryError | None:
    """Return the shortage of memory that has ended learners which share weights, if that was the cause.

    Shorter rows are remembered, and the job begins again on new learners.
    """
    from tandem.rl.errors import OutOfMemoryError

    cause = getattr(error.__cause__, "cause", None)  # of Ray's error
    return cause if isinstance(cause, OutOfMemoryError) else None


def _warning(num_tokens: int, limit: RowLimit, why: str) -> dict[str, Any]:
    rows = f"are split into rows of at most {limit.row_tokens} tokens" if limit.row_tokens else "stay as they are"
    counts = {"row_tokens": num_tokens}
    if limit.row_tokens:
        counts["max_row_tokens"] = limit.row_tokens
    if limit.chunk_size:
        counts["logprob_chunk_size"] = limit.chunk_size
    return {
        "kind": ROWS_SPLIT,
        "message": f"The learners' memory doesn't suffice for a packed row of {num_tokens} tokens ({why}). Longer rows "
        f"{rows}, and logits are computed for {limit.chunk_size} tokens at a time, also in later jobs, until the "
        "service is started again. The update is the same, but steps take longer: lower packed_sequence_length, or "
        "give the learners more memory.",
        "counts": counts,
    }
