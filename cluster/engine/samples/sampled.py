"""The answer to a request for samples, as arrays and as the protobuf message that clients read.

Shapes: T sampled tokens, P prompt tokens, K entries per position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.cluster.calls.wire import messages
from tandem.cluster.engine.samples.prompt_targets import PromptTargets

NO_LOGPROB = -99999.0
"""With token id 0, marks an empty entry of the most likely tokens."""

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class TopTokens:
    """The most likely tokens of each position, the likeliest first."""

    ids: Ids
    """[T, K] or [P, K]."""
    logprobs: Floats

    def after(self, num: int) -> TopTokens:
        """Return these with the first `num` positions emptied."""
        ids, logprobs = self.ids.copy(), self.logprobs.copy()
        ids[:num], logprobs[:num] = 0, NO_LOGPROB
        return TopTokens(ids, logprobs)


@dataclass(frozen=True)
class SampledTokens:
    """One sample, with the token that ended it."""

    tokens: Ids
    """[T]"""
    logprobs: Floats
    """[T], of the policy at temperature 1."""
    top: TopTokens | None
    is_stopped: bool
    """It ended by itself; otherwise at the limit of its length."""


@dataclass(frozen=True)
class Sampled:
    sequences: Sequence[SampledTokens]
    num_cached: int
    """Tokens of the prompt that the prefix cache had."""
    prompt_logprobs: Floats | None = None
    """[P]; NaN where there is none, as for the first token."""
    prompt_top: TopTokens | None = None
    """[P, K]"""
    targets: tuple[PromptTargets, Floats] | None = None
    """The ids that were asked for, and [P - 1, K] their logprobs."""
    alternatives: TopTokens | None = None
    """[P - 1, K], drawn."""

    def to_protobuf(self) -> bytes:
        """Return the message SampleResponse."""
        answer = messages.SampleResponse(prompt_cache_hit_tokens=self.num_cached)
        for own in self.sequences:
            sequence = answer.sequences.add(
                stop_reason=messages.STOP if own.is_stopped else messages.LENGTH,
                tokens=_bytes(own.tokens, "<i4"),
                logprobs=_bytes(own.logprobs, "<f4"),
            )
            if own.top is not None:
                _write_top(sequence.topk_sampled_logprobs, own.top)
        if self.prompt_logprobs is not None:
            answer.prompt_logprobs = _bytes(self.prompt_logprobs, "<f4")
        if self.prompt_top is not None:
            _write_top(answer.topk_prompt_logprobs, self.prompt_top)
        if self.targets is not None:
            _write_targets(answer.target_prompt_logprobs, *self.targets)
        if (drawn := self.alternatives) is not None:
            alternatives, shape = answer.prompt_alt_tokens, drawn.ids.shape
            _write_dense(alternatives.tokens, _bytes(drawn.ids, "<i8"), messages.INT64, shape)
            _write_dense(alternatives.logprobs, _bytes(drawn.logprobs, "<f4"), messages.FLOAT32, shape)
        content: bytes = answer.SerializeToString()
        return content


def _bytes(array: NDArray[Any], dtype: str) -> bytes:
    return array.astype(dtype).tobytes()


def _write_top(message: Any, top: TopTokens) -> None:
    message.token_ids, message.logprobs = _bytes(top.ids, "<i4"), _bytes(top.logprobs, "<f4")
    message.length, message.k = top.ids.shape


def _write_dense(message: Any, content: bytes, dtype: int, shape: Sequence[int]) -> None:
    message.dense, message.dtype = content, dtype
    message.shape.extend(shape)


def _write_targets(message: Any, targets: PromptTargets, logprobs: Floats) -> None:
    values = _bytes(targets.values_of(logprobs), "<f4")
    if targets.rows is None:
        return _write_dense(message, values, messages.FLOAT32, targets.shape)
    starts, columns = targets.rows
    message.sparse_csr.values, message.dtype = values, messages.FLOAT32
    message.sparse_csr.crow_indices, message.sparse_csr.col_indices = _bytes(starts, "<i8"), _bytes(columns, "<i8")
    message.shape.extend(targets.shape)
    return None
