"""Packing: sequences to packed rows, in which every long common prefix of a group is computed once.

`packed_rows` has the rows and says what they mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, groupby
from operator import attrgetter

import torch
from torch import Tensor

from tandem.rl.packed_rows import PackedSequence, Repeats, one_segment, unpack
from tandem.rl.prefix_order import prefix_order
from tandem.rl.tokens.tokenizing import TokenizedSequence

__all__ = ["MIN_GAIN", "PackedSequence", "Repeats", "one_segment", "pack", "unpack"]

MIN_GAIN = 64
"""Tokens that a sequence must save to leave another one in its middle. The shared prompt of a group may be shorter."""


def pack(
    sequences: Sequence[TokenizedSequence],
    packed_sequence_length: int,
    min_gain: int | None = MIN_GAIN,
    shares_prefixes: bool = True,
    first_trace_id: int | None = None,
) -> list[PackedSequence]:
    """Fill rows of at most `packed_sequence_length` tokens with sequences.

    A row ends when the next sequence doesn't fit (next fit); a new row repeats the prefixes that it needs. Groups keep
    their order. So do the sequences of a group, unless some share more than its prompt: these come depth-first
    (`prefix_order`), so that rows hold whole branches. Advantages and weights are copied.

    Args:
        sequences: those of a group next to each other; none longer than `packed_sequence_length`.
        packed_sequence_length: tokens.
        min_gain: tokens that a sequence must save to leave another one; None: only the prompt of a group is shared.
        shares_prefixes: False for models with recurrent layers: every sequence is then one segment, whole.
        first_trace_id: number of the first trained token of the first sequence, so that tokens can be traced; the
            others follow in the order of `sequences`.
    """
    if first_trace_id is not None:
        sequences = _numbered(sequences, first_trace_id)
    rows: list[_Row] = [_Row()]
    for of_group in _groups(sequences) if shares_prefixes else _alone(sequences):
        rows[-1].path = []
        for sequence, num_shared in _depth_first(of_group, min_gain):
            assert sequence.num_tokens <= packed_sequence_length, "callers drop longer sequences before packing"
            if rows[-1].num_tokens + rows[-1].num_added(sequence, num_shared) > packed_sequence_length:
                rows.append(_Row())
            rows[-1].add(sequence, num_shared)
    return [row.packed() for row in rows if row.parts]


def _numbered(sequences: Sequence[TokenizedSequence], first: int) -> list[TokenizedSequence]:
    starts = accumulate((sequence.num_trained_tokens for sequence in sequences), initial=first)
    return [replace(sequence, first_trace_id=start) for sequence, start in zip(sequences, starts, strict=False)]


def _groups(sequences: Sequence[TokenizedSequence]) -> Iterator[list[TokenizedSequence]]:
    return (list(group) for _, group in groupby(sequences, key=attrgetter("group")))


def _alone(sequences: Sequence[TokenizedSequence]) -> Iterator[list[TokenizedSequence]]:
    """Yield each sequence as a group of its own, without a prompt that is shared."""
    return ([replace(sequence, prompt_length=0)] for sequence in sequences)


def _depth_first(group: Sequence[TokenizedSequence], min_gain: int | None) -> Iterator[tuple[TokenizedSequence, int]]:
    """Yield the sequences of a group, each with the number of tokens that it shares with the one before it."""
    prompt = group[0].prompt_length
    if min_gain is None:
        order = [(index, 1) for index in range(len(group))]
    else:
        order = prefix_order([sequence.token_ids[prompt:] for sequence in group], min_gain)
    for index, num_shared in order:
        yield group[index], prompt + num_shared


@dataclass(frozen=True)
class _Part:
    """Tokens start to stop of a sequence, as a segment of a row from token `begin` on. `parent` is its parent's id."""

    sequence: TokenizedSequence
    start: int
    stop: int
    begin: int
    parent: int


class _Row:
    """A row while it is filled, depth-first."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.path: list[int] = []
        """The segments of the last sequence, from its root on; empty at the first sequence of a group."""
        self.num_tokens = 0
        self._repeats: list[tuple[TokenizedSequence, Tensor, Tensor, int | None]] = []

    def num_added(self, sequence: TokenizedSequence, num_shared: int) -> int:
        """Return the tokens that a sequence would add, which shares its first `num_shared` ones with the last."""
        if not self._shared_path(num_shared):
            return sequence.num_tokens
        own = sequence.num_tokens - num_shared
        return own + 1 if own else 0

    def add(self, sequence: TokenizedSequence, num_shared: int) -> None:
        """Add a sequence, which shares its first `num_shared` tokens with the last one."""
        self.path = self._shared_path(num_shared)
        if not self.path:
            if sequence.prompt_length:
                self._append(sequence, 0, sequence.prompt_length)
            self._append(sequence, sequence.prompt_length, sequence.num_tokens)
        elif num_shared < sequence.num_tokens:
            self._repeat(sequence, num_shared, completion_id=len(self.parts))
            self._append(sequence, num_shared - 1, sequence.num_tokens)
        else:
            self._repeat(sequence, num_shared, completion_id=None)

    def _shared_path(self, num_shared: int) -> list[int]:
        """Return the segments of the last sequence that have a token before the last shared one."""
        return [segment for segment in self.path if self.parts[segment].start < num_shared - 1]

    def _append(self, sequence: TokenizedSequence, start: int, stop: int) -> None:
        parent = self.path[-1] if self.path else len(self.parts)
        self.path.append(len(self.parts))
        self.parts.append(_Part(sequence, start, stop, self.num_tokens, parent))
        self.num_tokens += stop - start

    def _repeat(self, sequence: TokenizedSequence, num_shared: int, completion_id: int | None) -> None:
        """Record the trained ones among the first `num_shared` tokens, which are in the segments of the path."""
        if num_shared == sequence.prompt_length + 1:
            return  # nothing of a prompt is trained
        trained = sequence.loss_mask[:num_shared].nonzero().squeeze(1)
        if trained.numel():
            # The first token of a segment is a copy of one that its parent has.
            starts = torch.tensor([self.parts[segment].start for segment in self.path])
            begins = torch.tensor([self.parts[segment].begin for segment in self.path])
            place = torch.bucketize(trained, starts) - 1
            self._repeats.append((sequence, trained, begins[place] + trained - starts[place], completion_id))

    def packed(self) -> PackedSequence:
        """Return the finished row."""
        parts = self.parts
        lengths = torch.tensor([part.stop - part.start for part in parts])

        def gather(name: str) -> Tensor:
            return torch.cat([getattr(part.sequence, name)[part.start : part.stop] for part in parts])

        loss_mask = gather("loss_mask")
        loss_mask[[part.begin for part in parts if part.start]] = False  # copies, which nothing predicts
        is_traced = any(part.sequence.first_trace_id is not None for part in parts)
        return PackedSequence(
            token_ids=gather("token_ids"),
            positions=torch.cat([torch.arange(part.start, part.stop) for part in parts]),
            segment_ids=_spread(list(range(len(parts))), lengths),
            parent_ids=_spread([part.parent for part in parts], lengths),
            loss_mask=loss_mask,
            sampling_logprobs=gather("sampling_logprobs").float(),
            advantages=_spread([part.sequence.advantage for part in parts], lengths).float() * loss_mask,
            weights=_spread([part.sequence.weight for part in parts], lengths).float() * loss_mask,
            policy_versions=_spread([_or_unknown(part.sequence.policy_version) for part in parts], lengths),
            group_ids=_spread([part.sequence.group for part in parts], lengths).int(),
            trajectory_ids=_spread([part.sequence.trajectory for part in parts], lengths).int(),
            trace_ids=torch.where(loss_mask, gather("trace_ids"), -1) if is_traced else None,
            repeats=self._packed_repeats(is_traced),
        )

    def _packed_repeats(self, is_traced: bool) -> Repeats:
        if not self._repeats:
            return Repeats.none()
        sequences, trained, indices, completion_ids = zip(*self._repeats, strict=True)
        lengths, new_ids = torch.tensor([own.numel() for own in trained]), count(len(self.parts))
        sampling_logprobs = [s.sampling_logprobs[own] for s, own in zip(sequences, trained, strict=True)]
        return Repeats(
            indices=torch.cat(indices),
            completion_ids=_spread([next(new_ids) if id_ is None else id_ for id_ in completion_ids], lengths),
            sampling_logprobs=torch.cat(sampling_logprobs).float(),
            advantages=_spread([s.advantage for s in sequences], lengths).float(),
            weights=_spread([s.weight for s in sequences], lengths).float(),
            policy_versions=_spread([_or_unknown(s.policy_version) for s in sequences], lengths),
            is_fresh=torch.zeros(int(lengths.sum()), dtype=torch.bool),
            trace_ids=_trace_ids(sequences, trained) if is_traced else None,
        )


def _trace_ids(sequences: Sequence[TokenizedSequence], trained: Sequence[Tensor]) -> Tensor:
    return torch.cat([sequence.trace_ids[own] for sequence, own in zip(sequences, trained, strict=True)])


def _spread(values: list[float] | list[int], lengths: Tensor) -> Tensor:
    return torch.tensor(values).repeat_interleave(lengths)


def _or_unknown(version: int | None) -> int:
    return -1 if version is None else version
