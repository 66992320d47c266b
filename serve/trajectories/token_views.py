"""A trajectory's tokens as the API shows them: a range of columns, and what stands out in the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.rl.traces.group_trace import SequenceTrace
from tandem.serve.trajectories.token_wire import (
    Notable,
    NotableToken,
    Range,
    TokenColumns,
    TokenSequence,
    TokenTurn,
    TrajectoryTokens,
)
from tandem.serve.trajectories.tokens import FoundTokens

NUM_NOTABLE = 20
DIGITS = 7
"""Significant ones: those of float32."""
Floats = NDArray[np.float64]
TextOf = Callable[[Sequence[int]], Sequence[bytes]]
"""Returns the bytes that each token stands for."""


def tokens_view(found: FoundTokens, start: int, limit: int, bytes_of: TextOf) -> TrajectoryTokens:
    """Return `limit` tokens from `start` on, with numbers of the whole trajectory."""
    sequences = found.sequences
    columns = _Columns(sequences)
    begins = np.cumsum([0, *(one.num_tokens for one in sequences)]).tolist()
    is_job, is_trained = found.kind != "log", found.state == "trained"
    return TrajectoryTokens(
        id=str(found.place),
        job_id=found.place.source if is_job else None,
        log_id=None if is_job else found.place.source,
        model_id=found.model_id,
        kind=found.kind,
        state=found.state,
        reason=found.reason,
        message=found.message,
        made_version=found.made_version,
        num_tokens=len(columns.ids),
        num_trained=int(columns.mask.sum()),
        num_choices_without_ids=found.num_choices_without_ids,
        sequences=[_sequence(one, begin, is_trained) for one, begin in zip(sequences, begins, strict=False)],
        tokens=columns.between(start, start + limit, bytes_of),
        has_more=start + limit < len(columns.ids),
        logprobs=_range(columns.logprobs),
        differences=_range(columns.differences),
        ratios=_range(np.exp(columns.log_ratios)),
        notable=columns.notable(bytes_of),
    )


def _sequence(one: SequenceTrace, begin: int, is_trained: bool) -> TokenSequence:
    return TokenSequence(
        begin=begin,
        num_tokens=one.num_tokens,
        num_trained=int(one.loss_mask.sum()),
        history=one.history,
        advantage=one.advantage if is_trained else None,
        weight=one.weight if is_trained else None,
        policy_version=one.policy_version,
        gradient_step=one.gradient_step if is_trained else None,
        turns=[
            TokenTurn(
                begin=begin + turn.begin,
                num_tokens=turn.num_tokens,
                index=turn.index,
                policy_version=turn.policy_version,
            )
            for turn in one.turns
        ],
    )


class _Columns:
    """The columns of all sequences, one after another."""

    def __init__(self, sequences: Sequence[SequenceTrace]):
        def joined(name: str, empty: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([empty, *(getattr(one, name) for one in sequences)])

        def floats(name: str) -> Floats | None:
            known = all(getattr(one, name) is not None for one in sequences)
            return joined(name, np.empty(0)) if known and sequences else None

        self.ids = joined("token_ids", np.empty(0, np.int64))
        self.mask = joined("loss_mask", np.empty(0, bool))
        self._sampling, self._learner = (
            joined(name, np.empty(0)) for name in ("sampling_logprobs", "learner_logprobs")
        )
        self._old, self._ref = floats("old_logprobs"), floats("ref_logprobs")
        self.differences = self._learner - self._sampling
        self.log_ratios = self._learner - (self._sampling if self._old is None else self._old)
        self.logprobs = np.where(np.isnan(self._learner), self._sampling, self._learner)

    def between(self, start: int, stop: int, bytes_of: TextOf) -> TokenColumns:
        part = slice(start, stop)
        ids = self.ids[part].tolist()
        spelled = [_spelled(token) for token in bytes_of(ids)] if ids else []
        return TokenColumns(
            start=start,
            ids=ids,
            texts=[text for text, _ in spelled],
            bytes=[raw for _, raw in spelled],
            mask=self.mask[part].tolist(),
            sampling_logprobs=_listed(self._sampling[part]),
            learner_logprobs=_listed(self._learner[part]),
            old_logprobs=None if self._old is None else _listed(self._old[part]),
            ref_logprobs=None if self._ref is None else _listed(self._ref[part]),
            ratios=_listed(np.exp(self.log_ratios[part])),
        )

    def notable(self, bytes_of: TextOf) -> Notable:
        return Notable(
            mismatch=self._top(np.abs(self.differences), self.differences, bytes_of),
            improbable=self._top(-self.logprobs, self.logprobs, bytes_of),
            ratio=self._top(np.abs(self.log_ratios), np.exp(self.log_ratios), bytes_of),
        )

    def _top(self, sizes: Floats, values: Floats, bytes_of: TextOf) -> list[NotableToken]:
        known = np.flatnonzero(np.isfinite(sizes))
        order = known[np.argsort(-sizes[known], kind="stable")][:NUM_NOTABLE]
        spelled = bytes_of(self.ids[order].tolist()) if len(order) else []
        return [
            NotableToken(token=number, text=text, bytes=raw, value=value)
            for number, (text, raw), value in zip(
                order.tolist(), map(_spelled, spelled), _rounded(values[order]), strict=True
            )
        ]


def _spelled(token: bytes) -> tuple[str, str | None]:
    """Return the text of a token, and its bytes in hexadecimal if that isn't exact."""
    text = token.decode(errors="replace")
    return text, None if text.encode() == token else token.hex()


def _listed(values: Floats) -> list[float | None]:
    return [value if known else None for value, known in zip(_rounded(values), np.isfinite(values), strict=True)]


def _rounded(values: Floats) -> list[float]:
    """Return the values with so many significant digits: ratios may be tiny."""
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def _range(values: Floats) -> Range | None:
    known = values[np.isfinite(values)].astype(np.float64)
    if not len(known):
        return None
    low, high, mean, size = _rounded(np.array([known.min(), known.max(), known.mean(), np.abs(known).mean()]))
    return Range(num=len(known), min=low, max=high, mean=mean, mean_abs=size)
