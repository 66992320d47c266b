"""Packing: many sequences in one row, with the shared prompt of a group computed once.

A packed sequence is a row of segments. A segment is either a prompt shared by several completions or one completion
(the rest of a sequence: everything after the shared prompt, later user turns included). Token q sees token k when

    k <= q  and  (segment[q] == segment[k]  or  parent[q] == segment[k]),

so a completion sees its prompt and itself, never its neighbours; `positions` are those of the unpacked sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from tandem.rl.tokens.tokenizing import TokenizedSequence


@dataclass(frozen=True)
class PackedSequence:
    """One row of packed sequences; no padding, T varies. Every field is [T] and describes token t."""

    token_ids: Tensor
    """int64."""
    positions: Tensor
    """int64. Index of the token in its own, unpacked sequence."""
    segment_ids: Tensor
    """int64. The segment the token belongs to; numbered from 0 in order of appearance in the row."""
    parent_ids: Tensor
    """int64. The segment that this token's segment continues; a root is its own parent."""
    loss_mask: Tensor
    """bool. True where the token was sampled and is trained."""
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

    @property
    def num_tokens(self) -> int:
        return self.token_ids.numel()

    @property
    def num_trained_tokens(self) -> int:
        return int(self.loss_mask.sum())

    @property
    def num_completions(self) -> int:
        """Segments with a trained token, at least 1."""
        trained: Tensor = self.segment_ids[self.loss_mask].unique()
        return max(trained.numel(), 1)

    def to(self, device: torch.device | str) -> PackedSequence:
        """Return the row with every tensor on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.to(device) for name, t in tensors.items() if t is not None})


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


def unpack(row: PackedSequence) -> list[Tensor]:
    """Return the sequences of a row, each as the row indices [T] of its tokens, prompt first.

    There is one per segment that no other segment continues. `row.token_ids[indices]` is the sequence before packing.
    The indices of a shared prompt occur in several.
    """
    parents = row.parent_ids[row.parent_ids != row.segment_ids].unique()
    leaves = row.segment_ids[~torch.isin(row.segment_ids, parents)].unique().tolist()
    found = []
    for leaf in leaves:
        own = row.segment_ids == leaf
        parent = row.parent_ids[own][0]
        found.append((own | (row.segment_ids == parent)).nonzero().squeeze(1))
    return found


def pack(sequences: Sequence[TokenizedSequence], packed_sequence_length: int) -> list[PackedSequence]:
    """Fill rows of at most `packed_sequence_length` tokens with sequences, in order.

    A row ends when the next sequence doesn't fit (next fit). Within a row, the sequences of a group share its prompt;
    a new row repeats it. Advantages and weights are copied.

    Args:
        sequences: those of a group next to each other; none longer than `packed_sequence_length`.
        packed_sequence_length: tokens.
    """
    rows: list[PackedSequence] = []
    segments: list[_Segment] = []
    for sequence in sequences:
        assert sequence.num_tokens <= packed_sequence_length, "callers drop longer sequences before packing"
        added = _segments(sequence, segments)
        if segments and sum(s.num_tokens for s in segments + added) > packed_sequence_length:
            rows.append(_row(segments))
            segments = []
            added = _segments(sequence, segments)
        segments += added
    return [*rows, _row(segments)] if segments else rows


@dataclass(frozen=True)
class _Segment:
    """Tokens start to stop of a sequence. `parent` is an index in the row's segments; a root has its own."""

    sequence: TokenizedSequence
    start: int
    stop: int
    parent: int

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


def _segments(sequence: TokenizedSequence, row: list[_Segment]) -> list[_Segment]:
    """Return the segments that a sequence adds to a row: its tokens, after its group's prompt if that is missing."""
    prompt_length, end = sequence.prompt_length, sequence.num_tokens
    if prompt_length == 0:
        return [_Segment(sequence, 0, end, parent=len(row))]
    for index, segment in enumerate(row):
        if segment.sequence.group == sequence.group:
            return [_Segment(sequence, prompt_length, end, parent=index)]
    prompt = len(row)
    return [_Segment(sequence, 0, prompt_length, parent=prompt), _Segment(sequence, prompt_length, end, parent=prompt)]


def _row(segments: list[_Segment]) -> PackedSequence:
    lengths = torch.tensor([segment.num_tokens for segment in segments])

    def gather(name: str) -> Tensor:
        return torch.cat([getattr(s.sequence, name)[s.start : s.stop] for s in segments])

    def spread(values: list[float] | list[int]) -> Tensor:
        return torch.tensor(values).repeat_interleave(lengths)

    loss_mask = gather("loss_mask")
    return PackedSequence(
        token_ids=gather("token_ids"),
        positions=torch.cat([torch.arange(s.start, s.stop) for s in segments]),
        segment_ids=spread(list(range(len(segments)))),
        parent_ids=spread([segment.parent for segment in segments]),
        loss_mask=loss_mask,
        sampling_logprobs=gather("sampling_logprobs").float(),
        advantages=spread([segment.sequence.advantage for segment in segments]).float() * loss_mask,
        weights=spread([segment.sequence.weight for segment in segments]).float() * loss_mask,
        policy_versions=spread([_or_unknown(segment.sequence.policy_version) for segment in segments]),
    )


def _or_unknown(version: int | None) -> int:
    return -1 if version is None else version
