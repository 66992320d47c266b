"""Makes an engine a scorer of packed rows: rows are unpacked for it, and its logprobs are packed again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tandem.cluster.logprobs.pool import Score

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.rl.packing import PackedSequence

EngineScore = Callable[[list[list[int]], str, float], list[list[float]]]
"""Takes token ids of N sequences, the digest of a policy version and a timeout in seconds. Returns the logprob of each
token given those before it (`Engine.score`)."""


def engine_scorer(engine: EngineScore, digest: str) -> Score:
    """Return an engine as the pool uses it, scoring under one policy version."""

    def score(rows: Sequence[PackedSequence], timeout_s: float) -> list[Tensor]:
        from tandem.rl.packing import unpack

        indices = [unpack(row) for row in rows]
        sequences = [row.token_ids[own].tolist() for row, of_row in zip(rows, indices, strict=True) for own in of_row]
        logprobs = iter(engine(sequences, digest, timeout_s))
        return [
            _packed(row, of_row, [next(logprobs) for _ in of_row]) for row, of_row in zip(rows, indices, strict=True)
        ]

    return score


def _packed(row: PackedSequence, indices: Sequence[Tensor], logprobs: Sequence[Sequence[float]]) -> Tensor:
    """Return token-aligned logprobs [T] of a row, NaN at the first token of each segment, as a learner has it."""
    import torch

    packed = torch.full((row.num_tokens,), math.nan)
    for own, values in zip(indices, logprobs, strict=True):
        packed[own] = torch.tensor(values, dtype=torch.float32)
    begins = torch.ones_like(row.loss_mask)
    begins[1:] = row.segment_ids[1:] != row.segment_ids[:-1]
    return packed.masked_fill(begins, math.nan)
