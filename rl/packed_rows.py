"""Packed rows: many sequences in one row, each common prefix once.

A row is a forest of segments. A segment is the rest of a sequence after the prefix that it shares with an earlier one,
its parent. It continues the parent from some position p: it begins with a copy of the token at p, because that token
predicts its first own one, and it sees the parent's tokens before p and all that these see. A segment may leave its
parent anywhere, so a trunk is never cut into pieces:

    position    0 1 2 3 4 5 6 7 8 9
    segment 0   a b c d e f g h i j     a sequence
    segment 1               f x y       its branch, which continues segment 0 from position 5
    segment 2         c z               another branch, which leaves earlier

Segments stand in depth-first order, and branches that leave a segment later come first. Then all tokens that see token
k follow it without a gap, up to the end of the last branch that leaves after k. This is the whole rule of attention:

    token q sees token k if and only if k <= q < seen_until[k].

Completions on one untrained prompt are the plain case: the prompt is a segment of its own, and all completions continue
it from its end. `positions` are those of the unpacked sequence.

A token that several sequences train is computed once, too. The row has it for the sequence that its segment belongs
to, and `repeats` once more for each other one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedSequence:
    """One row of packed sequences; no padding, T varies. Every tensor is [T] and describes token t."""

    token_ids: Tensor
    """int64."""
    positions: Tensor
    """int64. Index of the token in its own, unpacked sequence."""
    segment_ids: Tensor
    """int64. The segment the token belongs to; numbered from 0 in order of appearance in the row."""
    parent_ids: Tensor
    """int64. The segment that this token's segment continues; a root is its own parent."""
    loss_mask: Tensor
    """bool. True where the token was sampled and is trained, for the sequence that its segment belongs to."""
    sampling_logprobs: Tensor
    """float32. The sampler's logprob of the token, NaN where unknown."""
    advantages: Tensor
    """float32. Balanced and normalised; 0 outside the mask."""
    weights: Tensor
    """float32. Mean 1 over the trained tokens of the job; 0 outside the mask."""
    old_logprobs: Tensor | None = None
    """float32. Logprobs recomputed under the policy before the step; NaN where unknown."""
    ref_logprobs: Tensor | None = None
    """float32. Logprobs under the KL reference; NaN where unknown."""
    policy_versions: Tensor | None = None
    """int64. The step of the policy version that the token's trajectory began with; -1 where unknown."""
    is_fresh: Tensor | None = None
    """bool. True if sampled by the policy at the start of the step; None in steps that don't compare the two."""
    group_ids: Tensor | None = None
    """int32. Index in the job of the trajectory group that the token's segment belongs to."""
    trajectory_ids: Tensor | None = None
    """int32. Index in its group of the trajectory that the token's segment belongs to."""
    trace_ids: Tensor | None = None
    """int32. The number of this training among all of the job (`rl.traces`); -1 outside the mask. None: not traced."""
    repeats: Repeats = field(default_factory=lambda: Repeats.none())
    """Trainings of the row's tokens for further sequences; none if every token is trained once at most."""

    @property
    def num_tokens(self) -> int:
        return self.token_ids.numel()

    @property
    def num_trained_tokens(self) -> int:
        """Of all sequences: a token counts once for each sequence that trains it."""
        return int(self.loss_mask.sum()) + self.repeats.indices.numel()

    @property
    def num_completions(self) -> int:
        """Sequences with a trained token, at least 1."""
        trained: Tensor = torch.cat([self.segment_ids[self.loss_mask], self.repeats.completion_ids]).unique()
        return max(trained.numel(), 1)

    @property
    def is_trained(self) -> Tensor:
        """bool. True where any sequence trains the token."""
        return self.loss_mask.index_fill(0, self.repeats.indices, True)

    def to(self, device: torch.device | str) -> PackedSequence:
        """Return the row with every tensor on `device`."""
        return _moved(self, device)


@dataclass(frozen=True)
class Repeats:
    """Trainings of tokens that a row has for another sequence. Every tensor is [E] and describes one training.

    Logprobs under a policy (`old_logprobs`, `ref_logprobs`) are those of the token, whichever sequence trains it.
    """

    indices: Tensor
    """int64. The token's index in the row."""
    completion_ids: Tensor
    """int64. The segment of the sequence that trains it; a number of its own if the sequence has no segment."""
    sampling_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    policy_versions: Tensor
    is_fresh: Tensor
    """bool. Meaningless where the row's own `is_fresh` is None."""
    trace_ids: Tensor | None = None
    """int32. As the row's own, which are None if these are."""

    @classmethod
    def none(cls) -> Repeats:
        ids, values = torch.empty(0, dtype=torch.int64), torch.empty(0)
        return cls(ids, ids, values, values, values, ids, ids.bool())

    def to(self, device: torch.device | str) -> Repeats:
        """Return them with every tensor on `device`."""
        return _moved(self, device)


Columns = TypeVar("Columns", PackedSequence, Repeats)


def _moved(columns: Columns, device: torch.device | str) -> Columns:
    values = {f.name: getattr(columns, f.name) for f in fields(columns)}
    return replace(columns, **{name: value.to(device) for name, value in values.items() if value is not None})


@dataclass(eq=False)
class Segment:
    """Tokens `begin` to `stop` of a row. `end` is the stop of the last segment that continues it, or its own."""

    id: int
    begin: int
    stop: int
    end: int
    position: int
    """Of its first token."""
    parent: Segment | None

    @property
    def num_seen(self) -> int:
        """How many tokens of its parent the segment sees: the first ones."""
        return 0 if self.parent is None else self.position - self.parent.position


def segments_of(row: PackedSequence) -> list[Segment]:
    """Return the segments of a row in order. Raise ValueError if it isn't depth-first, with late branches first."""
    changes = (row.segment_ids[1:] != row.segment_ids[:-1]).nonzero().squeeze(1) + 1
    begins = torch.cat([changes.new_zeros(1), changes])
    columns = torch.stack([begins, row.segment_ids[begins], row.parent_ids[begins], row.positions[begins]]).tolist()
    stops = [*columns[0][1:], row.num_tokens]
    segments: list[Segment] = []
    path: list[Segment] = []
    left_at: dict[int, int] = {}
    for begin, id_, parent, position, stop in zip(*columns, stops, strict=True):
        while path and path[-1].id != parent:
            path.pop()
        if id_ != parent:
            if not path or position > left_at.setdefault(parent, position):
                raise ValueError(f"Segment {id_} of a packed row, at token {begin}, isn't in depth-first order.")
            left_at[parent] = position
        segments.append(Segment(id_, begin, stop, stop, position, path[-1] if path else None))
        for ancestor in path:
            ancestor.end = stop
        path.append(segments[-1])
    return segments


def seen_until(row: PackedSequence) -> Tensor:
    """Return int64 [T]: token q sees token k if and only if k <= q < seen_until[k]."""
    until = torch.empty(row.num_tokens, dtype=torch.int64)
    for segment in segments_of(row):
        until[segment.begin : segment.stop] = segment.stop
        if segment.parent is not None:  # a later branch sees fewer tokens of it
            until[segment.parent.begin :][: segment.num_seen] = segment.end
    return until.to(row.token_ids.device)


def unpack(row: PackedSequence) -> list[Tensor]:
    """Return sequences that cover a row, each as the row indices [T] of its tokens in order.

    There is one per segment, except for those that another one continues from their end. `row.token_ids[indices]` is
    the sequence before packing. The indices of a shared prefix occur in several.
    """
    segments = segments_of(row)
    continued = {s.parent for s in segments if s.parent and s.num_seen == s.parent.stop - s.parent.begin}
    return [_path_indices(segment) for segment in segments if segment not in continued]


def _path_indices(segment: Segment) -> Tensor:
    parts = [torch.arange(segment.begin, segment.stop)]
    while segment.parent is not None:
        begin = segment.parent.begin
        parts.append(torch.arange(begin, begin + segment.num_seen))
        segment = segment.parent
    return torch.cat(parts[::-1])


def one_segment(token_ids: Tensor) -> PackedSequence:
    """Return a row of one sequence [T] that is only scored: no token is trained."""
    index = torch.arange(token_ids.numel())
    zeros = torch.zeros(token_ids.numel())
    return PackedSequence(
        token_ids=token_ids,
        positions=index,
        segment_ids=torch.zeros_like(index),
        parent_ids=torch.zeros_like(index),
        loss_mask=zeros.bool(),
        sampling_logprobs=zeros,
        advantages=zeros,
        weights=zeros,
    )
