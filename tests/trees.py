"""Trees of sequences with common prefixes, trained and untrained, and the plainest form of what they see."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from tandem.rl.packing import PackedSequence
from tandem.rl.tokens.tokenizing import TokenizedSequence

MAX_TOKENS = 36
"""Of a sequence of `trees`."""


def visible(row: PackedSequence) -> torch.Tensor:
    """Return bool [T, T], True if query q (first axis) sees key k, in the plainest way: a walk from each token up."""
    segments = [(row.segment_ids == id_).nonzero().squeeze(1).tolist() for id_ in row.segment_ids.unique().tolist()]
    sees = torch.zeros(row.num_tokens, row.num_tokens, dtype=torch.bool)
    for query in range(row.num_tokens):
        segment = segments[int(row.segment_ids[query])]
        sees[query, [key for key in segment if key <= query]] = True
        while int(row.parent_ids[segment[0]]) != int(row.segment_ids[segment[0]]):
            parent = segments[int(row.parent_ids[segment[0]])]
            sees[query, [key for key in parent if row.positions[key] < row.positions[segment[0]]]] = True
            segment = parent
    return sees


@st.composite
def trees(draw: st.DrawFn, max_sequences: int = 6, vocabulary: int = 199) -> list[TokenizedSequence]:
    """Draw sequences of one or two groups, each of which leaves an earlier one somewhere, extends or repeats it.

    Any token but the first may be trained, also where another sequence doesn't train it. Each sequence has advantage,
    weight, sampling logprobs and version of its own.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sequences: list[TokenizedSequence] = []
    for group in range(draw(st.integers(1, 2))):
        prompt = torch.randint(1, vocabulary, (draw(st.integers(1, 12)),), generator=generator)
        of_group: list[torch.Tensor] = []
        for _ in range(draw(st.integers(1, max_sequences))):
            trunk = draw(st.sampled_from([prompt, *of_group]))
            kept = draw(st.integers(len(prompt), len(trunk)))
            num_own = draw(st.integers(0 if kept > len(prompt) else 1, min(12, MAX_TOKENS - kept)))
            own = torch.randint(1, vocabulary, (num_own,), generator=generator)
            of_group.append(torch.cat([trunk[:kept], own]))
        share_prompt = draw(st.booleans())
        for number, ids in enumerate(of_group):
            sequences.append(_sequence(group, number, ids, len(prompt), share_prompt, generator))
    return sequences


def branching_group(seed: int, vocabulary: int = 199) -> list[TokenizedSequence]:
    """Return a trunk, its beginning, two branches and a branch of a branch, in another order."""
    generator = torch.Generator().manual_seed(seed)

    def leaving(trunk: torch.Tensor, kept: int, num_own: int) -> torch.Tensor:
        return torch.cat([trunk[:kept], torch.randint(1, vocabulary, (num_own,), generator=generator)])

    trunk = leaving(torch.empty(0, dtype=torch.int64), 0, 24)
    branches = [leaving(trunk, kept, num_own) for kept, num_own in ((20, 7), (15, 9))]
    every = [branches[0], trunk[:18], leaving(branches[1], 19, 6), trunk, branches[1]]
    return [_sequence(0, number, ids, 6, True, generator) for number, ids in enumerate(every)]


def _sequence(
    group: int, number: int, ids: torch.Tensor, prompt: int, share_prompt: bool, generator: torch.Generator
) -> TokenizedSequence:
    is_own = torch.arange(len(ids)) >= (prompt if share_prompt else 1)
    mask = is_own & (torch.rand(len(ids), generator=generator) < 0.7)
    mask[-1] = True
    known = mask & (torch.rand(len(ids), generator=generator) < 0.8)
    logprobs = -3 + torch.randn(len(ids), generator=generator, dtype=torch.float64)
    return TokenizedSequence(
        *(group, number, 0, ids, mask),
        sampling_logprobs=torch.where(known, logprobs, math.nan),
        choice_offsets=(),
        advantage=float(torch.randn((), generator=generator)),
        weight=float(torch.rand((), generator=generator) + 0.5),
        prompt_length=prompt - 1 if share_prompt else 0,
        policy_version=number % 3,
    )
