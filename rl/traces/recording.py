"""The logprobs that a gradient step computes anyway, kept for the traces of its job."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tandem.rl.losses.inputs import shift_right
from tandem.rl.packed_rows import PackedSequence


@dataclass(frozen=True)
class StepTrace:
    """Trainings of tokens, each with the number that `PackedSequence.trace_ids` gives it. Arrays are [N]."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    """The policy's, of which the loss of the step was computed."""

    @classmethod
    def joined(cls, parts: list[StepTrace]) -> StepTrace:
        """Return the trainings of all parts."""
        empty = cls(np.empty(0, np.int32), np.empty(0, np.float32))
        return cls(*(np.concatenate([getattr(part, name) for part in (empty, *parts)]) for name in ("ids", "logprobs")))


class StepRecorder:
    """Keeps the logprobs of the rows of a step. `add` copies nothing, so that a GPU isn't waited for."""

    def __init__(self) -> None:
        self._rows: list[tuple[PackedSequence, Tensor]] = []

    def add(self, row: PackedSequence, logprobs: Tensor) -> None:
        """Keep prediction-aligned logprobs [T] of a row, unless it isn't traced."""
        if row.trace_ids is not None:
            self._rows.append((row, logprobs.detach()))

    def clear(self) -> None:
        self._rows.clear()

    def take(self) -> StepTrace:
        """Return what was kept, and forget it."""
        rows, self._rows = self._rows, []
        return StepTrace.joined([_of_row(row, logprobs.float().cpu()) for row, logprobs in rows])


def _of_row(row: PackedSequence, logprobs: Tensor) -> StepTrace:
    values = [shift_right(logprobs, float("nan")), logprobs[row.repeats.indices - 1]]
    ids = torch.cat(trace_ids_of(row))
    is_traced = ids >= 0
    return StepTrace(ids[is_traced].numpy(), torch.cat(values)[is_traced].numpy())


def trace_ids_of(row: PackedSequence) -> tuple[Tensor, Tensor]:
    """Return the numbers of a traced row's trainings: those of its tokens [T], and those of its repeats [E]."""
    assert row.trace_ids is not None
    repeated = row.repeats.trace_ids
    return row.trace_ids, row.trace_ids.new_empty(0) if repeated is None else repeated
