"""An engine as a scorer of packed rows, with a function of the prefix as its logprobs."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import trees, visible

from tandem.cluster.logprobs.engine_scorer import engine_scorer
from tandem.rl.packing import pack


def of_prefix(token_ids: list[int]) -> float:
    return -(sum(index * token for index, token in enumerate(token_ids, start=1)) % 1009) / 8


def engine(sequences: list[list[int]], digest: str, timeout_s: float) -> list[list[float]]:
    assert (digest, timeout_s) == ("d", 9.0)
    return [[of_prefix(ids[: n + 1]) for n in range(len(ids))] for ids in sequences]


@settings(deadline=None)
@given(trees(), st.integers(37, 200), st.one_of(st.integers(1, 8), st.none()))
def test_every_token_has_the_logprob_after_its_prefix(sequences, length, min_gain):
    rows = pack(sequences, length, min_gain)
    for row, logprobs in zip(rows, engine_scorer(engine, "d")(rows, 9.0), strict=True):
        begins = row.segment_ids != torch.cat([torch.tensor([-1]), row.segment_ids[:-1]])
        assert not (begins & row.is_trained).any()
        expected = [of_prefix(row.token_ids[keys].tolist()) for keys in visible(row)]
        expected = torch.tensor(expected).masked_fill(begins, math.nan)
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=0, equal_nan=True)
