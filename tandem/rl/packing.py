"""Packing: many sequences in one, with the prompt that a group shares computed once.

A packed sequence is a row of segments. A segment is either a prompt shared by several completions or one completion
(the rest of a sequence: everything after the shared prompt, later user turns included). Token q sees token k when

    k <= q  and  (segment[q] == segment[k]  or  parent[q] == segment[k]),

so a completion sees its prompt and itself, never its neighbours; `positions` are those of the unpacked sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


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

    @property
    def num_tokens(self) -> int:
        return self.token_ids.numel()

    @property
    def num_trained_tokens(self) -> int:
        return int(self.loss_mask.sum())

    def to(self, device: torch.device | str) -> PackedSequence:
        """The same row with every tensor on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.to(device) for name, t in tensors.items() if t is not None})
