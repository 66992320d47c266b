"""Out of memory: recognised, reported with its numbers, and answered with shorter rows.

    limit = RowLimit()                        # one for all steps on the same devices
    metrics = step_within_memory(learner.step, limit, rows, loss, learning_rate, chunk_size)

Losses are sums that are divided by the token count of the whole step, so a step over shorter rows is the same step.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tandem.rl.config import Objective
from tandem.rl.errors import OutOfMemoryError
from tandem.rl.gradient_step.row_splitting import join_tokens, longest_sequence, sequences_of, split_row
from tandem.rl.packed_rows import PackedSequence

LEAST_CHUNK_SIZE = 64
"""Tokens. With a vocabulary of 256k words, their float32 logits take 64 MiB."""
_MESSAGES = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"  # c10/core/impl/alloc_cpu.cpp
    r"|CUDA (driver )?error: out of memory"  # cudaErrorMemoryAllocation outside of torch's own allocator
    r"|CU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED"  # the libraries' own workspaces
    r"|std::bad_alloc"
)
_NUMBERS = re.compile(r"tried to allocate .*?(?:(?:is free|bytes)(?=\W|$)|$)", re.IGNORECASE | re.DOTALL)
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device, or the process, had too little memory for what was asked."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _MESSAGES.search(str(error)) is not None


def numbers_of(error: BaseException) -> str:
    """Return the part of the error's message that has the memory asked for and free."""
    said = str(error).strip()
    found = _NUMBERS.search(said)
    return " ".join((found[0] if found else said.partition("\n")[0] or type(error).__name__).split())


def free_memory() -> None:
    """Give back to the device what only a failed computation used. Call it after the `except` block, which holds it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@dataclass
class RowLimit:
    """The longest row, and the largest chunk of logits, for which the memory is known to suffice."""

    row_tokens: int | None = None
    """None: no row was too long so far. A single sequence may be longer."""
    chunk_size: int | None = None

    def rows(self, rows: Sequence[PackedSequence]) -> list[PackedSequence]:
        """Return the rows, the longer ones split."""
        if self.row_tokens is None:
            return list(rows)
        return [piece.row for row in rows for piece in split_row(row, self.row_tokens)]

    def chunk(self, chunk_size: int) -> int:
        return chunk_size if self.chunk_size is None else min(chunk_size, self.chunk_size)

    def shrink(self, error: OutOfMemoryError, rows: Sequence[PackedSequence]) -> None:
        """Halve what `error` was about. Raise it if that is a single sequence with the smallest chunk already.

        `rows`: those of the step, as they were computed.
        """
        failed = [row for row in rows if row.num_tokens == error.row_tokens]
        is_divisible = any(longest_sequence(row) < row.num_tokens for row in failed)
        if not is_divisible and error.chunk_size <= LEAST_CHUNK_SIZE:
            raise error
        if is_divisible:
            self.row_tokens = min(error.row_tokens // 2, self.row_tokens or error.row_tokens)
        self.chunk_size = max(LEAST_CHUNK_SIZE, error.chunk_size // 2)


def step_within_memory(
    step: Callable[[Sequence[PackedSequence], Objective, float, int], Result],
    limit: RowLimit,
    rows: Sequence[PackedSequence],
    loss: Objective,
    learning_rate: float,
    chunk_size: int,
    on_shrink: Callable[[OutOfMemoryError], None] = lambda error: None,
) -> Result:
    """Take a gradient step over rows that fit. `step` is like `Learner.step`: an OutOfMemoryError leaves no trace.

    Raises OutOfMemoryError if a single sequence doesn't fit. `on_shrink` is called before each repetition.
    """
    while True:
        fitting, chunk = limit.rows(rows), limit.chunk(chunk_size)
        try:
            return step(fitting, loss, learning_rate, chunk)
        except OutOfMemoryError as error:
            limit.shrink(error, fitting)
            on_shrink(error)


def score_within_memory(
    score: Callable[[Sequence[PackedSequence], int], list[Tensor]],
    limit: RowLimit,
    rows: Sequence[PackedSequence],
    chunk_size: int,
) -> list[Tensor]:
    """Return what `score`, which is like `Learner.score`, returns for the rows, split where they are too long.

    Raises OutOfMemoryError if a single sequence doesn't fit.
    """
    while True:
        pieces = [split_row(row, limit.row_tokens or row.num_tokens) for row in rows]
        fitting = [piece.row for of_row in pieces for piece in of_row]
        try:
            scored = iter(score(fitting, limit.chunk(chunk_size)))
        except OutOfMemoryError as error:
            limit.shrink(error, fitting)
            continue
        return [join_tokens(row, own, [next(scored) for _ in own]) for row, own in zip(rows, pieces, strict=True)]


def place_of(error: OutOfMemoryError, rows: Sequence[PackedSequence]) -> str:
    """Return which sequence is too long, and its tokens: "group 3, trajectory 0 (12000 tokens)"."""
    row = next((row for row in rows if row.num_tokens == error.row_tokens), None)
    if row is None or row.group_ids is None or row.trajectory_ids is None:
        return f"a sequence of {error.row_tokens} tokens"
    last = max(sequences_of(row), key=torch.sum).nonzero()[-1]
    return f"group {int(row.group_ids[last])}, trajectory {int(row.trajectory_ids[last])} ({error.row_tokens} tokens)"
