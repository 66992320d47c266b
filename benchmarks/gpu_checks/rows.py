"""Rows of packed sequences with awkward shapes, and rows of usual groups."""

from __future__ import annotations

from dataclasses import replace

import torch

from tandem.rl.packed_rows import PackedSequence, one_segment, unpack

Segments = list[tuple[int | None, int, int]]
"""Of each segment: the index of its parent, the position at which it leaves it, and its number of tokens."""


def row_of(segments: Segments, vocabulary: int) -> PackedSequence:
    """Return a row of random tokens, in which every token but the first of a segment is trained."""
    ids, parents, positions, mask = list[int](), list[int](), list[int](), list[bool]()
    for index, (parent, position, length) in enumerate(segments):
        ids += [index] * length
        parents += [index if parent is None else parent] * length
        positions += range(position, position + length)
        mask += [offset > 0 for offset in range(length)]
    generator = torch.Generator().manual_seed(len(ids))
    loss_mask = torch.tensor(mask)
    advantages = torch.randn(len(segments), generator=generator)[torch.tensor(ids)]
    return replace(
        one_segment(torch.randint(vocabulary, (len(ids),), generator=generator)),
        positions=torch.tensor(positions),
        segment_ids=torch.tensor(ids),
        parent_ids=torch.tensor(parents),
        loss_mask=loss_mask,
        sampling_logprobs=torch.full((len(ids),), float("nan")),
        advantages=torch.where(loss_mask, advantages, 0.0),
        weights=loss_mask.float(),
    )


def awkward(unit: int, vocabulary: int) -> dict[str, PackedSequence]:
    """Return six rows of a few times `unit` tokens."""
    third = unit // 3
    chain: Segments = [(None if n == 0 else n - 1, n * third, third) for n in range(9)]
    star: Segments = [(None, 0, unit), *((0, unit, third) for _ in range(12))]
    middle: Segments = [
        (None, 0, 2 * unit),
        (0, 2 * unit - 3, unit),
        (0, unit, third),
        (2, unit + 2, unit),
        (0, 1, unit),
    ]
    off: Segments = [(None, 0, length) for length in (127, 129, 1, unit + 1, 2)]
    tiny: Segments = []
    for number in range(unit // 2):
        tiny += [(None, 0, 3), (2 * number, 2, 1 + number % 3)]
    shapes: dict[str, Segments] = {
        "single token": [(None, 0, 1)],
        "deep chain": chain,
        "wide star": star,
        "branch in the middle": middle,
        "lengths off the block size": off,
        "many tiny segments": tiny,
    }
    return {name: row_of(segments, vocabulary) for name, segments in shapes.items()}


def group_row(num_tokens: int, vocabulary: int, completions: int = 8) -> PackedSequence:
    """Return a group of completions on one prompt, which takes a quarter of the row."""
    prompt = num_tokens // 4
    own = (num_tokens - prompt) // completions
    rest = num_tokens - prompt - own * (completions - 1)
    lengths = [own] * (completions - 1) + [rest]
    row = row_of([(None, 0, prompt), *((0, prompt, length) for length in lengths)], vocabulary)
    trained = row.loss_mask & (row.segment_ids > 0)
    return replace(
        row,
        loss_mask=trained,
        advantages=torch.where(trained, row.advantages, 0.0),
        weights=trained.float(),
    )


def seen_keys(row: PackedSequence) -> tuple[int, int]:
    """Return the pairs of query and key of a row, and those of its sequences alone."""
    lengths = [len(indices) for indices in unpack(row)]
    return int((row.positions + 1).sum()), sum(n * (n + 1) // 2 for n in lengths)


def logical_tokens(row: PackedSequence) -> int:
    """Return the tokens of its sequences, those of a shared prefix once for each."""
    return sum(len(indices) for indices in unpack(row))
