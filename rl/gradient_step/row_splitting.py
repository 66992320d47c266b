"""Packed rows cut into shorter ones that train the same tokens, for a device whose memory a row doesn't fit into.

The pieces of a row are rows of some of its sequences. Each keeps what its sequences see, so a prefix that several
pieces share is computed once in each. A token is trained in as many pieces as before: the sums over a gradient step
(`rl.learner`) stay those of the row. All trained tokens of a sequence stay in one piece, for sequence-level ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import count

import torch
from torch import Tensor

from tandem.rl.packed_rows import PackedSequence, Repeats, Segment, segments_of


@dataclass(frozen=True)
class Piece:
    """A row, and the indices [T] of its tokens in the row that it was cut from."""

    row: PackedSequence
    indices: Tensor


def split_row(row: PackedSequence, max_tokens: int) -> list[Piece]:
    """Return pieces of at most `max_tokens`, or of one sequence where that is longer. One piece is the row itself.

    Sequences keep their order, and a piece takes the next one as long as it fits (next fit), or if the next one has it.
    """
    if row.num_tokens <= max_tokens:
        return [Piece(row, torch.arange(row.num_tokens))]
    members: list[Tensor] = []
    for own in sequences_of(row):
        joint = members[-1] | own if members else own
        if members and int(joint.sum()) <= max(max_tokens, int(own.sum())):
            members[-1] = joint
        else:
            members.append(own)
    trained_in = _first_with_all(row, members)
    return [_piece(row, own, trained_in[number]) for number, own in enumerate(members)]


def sequences_of(row: PackedSequence) -> list[Tensor]:
    """Return the tokens of each sequence that isn't the beginning of another one, as bool [T], in the order of the row.

    Besides what the sequence sees, these are the tokens that it trains in other segments: at most the one whose copy
    begins the next segment.
    """
    segments = segments_of(row)
    continued = {s.parent for s in segments if s.parent and s.num_seen == s.parent.stop - s.parent.begin}
    return [_sequence(row, segment) for segment in segments if segment not in continued]


def _sequence(row: PackedSequence, segment: Segment) -> Tensor:
    own = torch.zeros(row.num_tokens, dtype=torch.bool)
    own[segment.begin : segment.stop] = True
    while segment.parent is not None:
        parent = segment.parent
        own[parent.begin : min(parent.begin + segment.num_seen + 1, parent.stop)] = True
        segment = parent
    return own


def longest_sequence(row: PackedSequence) -> int:
    """Return the tokens of the row's longest sequence: no piece that has it can be shorter."""
    return max(int(own.sum()) for own in sequences_of(row))


def join_tokens(row: PackedSequence, pieces: Sequence[Piece], values: Sequence[Tensor]) -> Tensor:
    """Return values [T] of the row's tokens from those of its pieces. A token of several has that of the first."""
    joined = values[0].new_full((row.num_tokens,), float("nan"))
    for piece, own in zip(reversed(pieces), reversed(values), strict=True):
        joined[piece.indices] = own
    return joined


def _first_with_all(row: PackedSequence, members: Sequence[Tensor]) -> list[set[int]]:
    """Return the completions that each piece trains: those of which it is the first to have every token.

    A piece that has a token has all that the token sees, so the last trained token of a completion decides.
    """
    last: dict[int, int] = {}
    own = row.loss_mask.nonzero().squeeze(1)
    trained = [(own, row.segment_ids[own]), (row.repeats.indices, row.repeats.completion_ids)]
    for indices, completions in trained:
        for index, completion in zip(indices.tolist(), completions.tolist(), strict=True):
            last[completion] = max(index, last.get(completion, 0))
    found: list[set[int]] = [set() for _ in members]
    for completion, index in last.items():
        found[next(number for number, own in enumerate(members) if own[index])].add(completion)
    return found


def _piece(row: PackedSequence, member: Tensor, completions: set[int]) -> Piece:
    """Return the tokens that are True in `member` [T] as a row, which trains these completions only."""
    indices = member.nonzero().squeeze(1)
    columns = {
        f.name: getattr(row, f.name)[indices]
        for f in fields(row)
        if f.name != "repeats" and getattr(row, f.name) is not None
    }
    number_of = {old: new for new, old in enumerate(columns["segment_ids"].unique().tolist())}
    own = torch.tensor(sorted(completions), dtype=torch.int64)
    columns["loss_mask"] = columns["loss_mask"] & torch.isin(columns["segment_ids"], own)
    for name in ("advantages", "weights"):
        columns[name] = columns[name] * columns["loss_mask"]
    if "trace_ids" in columns:
        columns["trace_ids"] = torch.where(columns["loss_mask"], columns["trace_ids"], -1)
    for name in ("segment_ids", "parent_ids"):
        columns[name] = torch.tensor([number_of[old] for old in columns[name].tolist()])
    return Piece(PackedSequence(**columns, repeats=_repeats(row, indices, own, number_of)), indices)


def _repeats(row: PackedSequence, indices: Tensor, completions: Tensor, number_of: dict[int, int]) -> Repeats:
    kept = torch.isin(row.repeats.completion_ids, completions)
    known = {f.name: getattr(row.repeats, f.name) for f in fields(row.repeats)}
    columns = {name: values[kept] for name, values in known.items() if values is not None}
    columns["indices"] = torch.searchsorted(indices, columns["indices"])
    numbers, unused = dict(number_of), count(len(number_of))
    for old in columns["completion_ids"].tolist():
        if old not in numbers:  # of a sequence without a segment
            numbers[old] = next(unused)
    columns["completion_ids"] = torch.tensor([numbers[old] for old in columns["completion_ids"].tolist()]).long()
    return Repeats(**columns)
