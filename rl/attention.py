"""Attention masks of packed sequences, for every attention implementation.

`visibility` defines the rule once, for a dense mask (SDPA, eager) and for a FlexAttention block mask. Attention by
segments (`segment_attention`) takes a table of blocks instead; tests compare it with the dense mask. Position ids are
always passed to the model, so that a completion continues its prompt's positions wherever it is in the row.

Shapes: T tokens of a packed sequence, P >= T tokens that are fed to the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from tandem.rl.packing import PackedSequence
from tandem.rl.segment_attention import block_table

Attention = Literal["segments", "sdpa", "eager", "flex_attention"]
FLEX_BLOCK_SIZE = 128
PADDING_SEGMENT = -1


def visibility(segment_ids: Tensor, parent_ids: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the rule as a FlexAttention mask_mod: (batch, head, query, key) indices to bool, True if query sees key.

    A query sees itself and earlier keys, in its own segment or the one its segment continues. [T], [T]
    """

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_segment = segment_ids[query] == segment_ids[key]
        in_prompt = parent_ids[query] == segment_ids[key]
        return (key <= query) & (same_segment | in_prompt)

    return sees


def dense_mask(segment_ids: Tensor, parent_ids: Tensor) -> Tensor:
    """Return the rule for all pairs: bool [1, 1, T, T], query by key."""
    index = torch.arange(segment_ids.numel(), device=segment_ids.device)
    zero = index.new_zeros(())
    return visibility(segment_ids, parent_ids)(zero, zero, index[:, None], index[None, :])[None, None]


def block_mask(segment_ids: Tensor, parent_ids: Tensor) -> BlockMask:
    """Return the rule as a block mask over P tokens, a multiple of 128; on CUDA without a [P, P] tensor."""
    num_tokens, device = segment_ids.numel(), segment_ids.device
    return create_block_mask(
        visibility(segment_ids, parent_ids),
        B=1,
        H=1,
        Q_LEN=num_tokens,
        KV_LEN=num_tokens,
        device=device,
        BLOCK_SIZE=FLEX_BLOCK_SIZE,
        _compile=device.type == "cuda",
    )


def forward_inputs(packed: PackedSequence, attention: Attention, dtype: torch.dtype) -> dict[str, Tensor | BlockMask]:
    """Return `packed` as keyword arguments of a transformers decoder, batch size 1.

    For FlexAttention the row is padded to P tokens; padding is a segment of its own. `dtype` is the model's: eager
    attention adds the mask to the scores.
    """
    if attention == "flex_attention":
        padding = -packed.num_tokens % FLEX_BLOCK_SIZE
        segment_ids = F.pad(packed.segment_ids, (0, padding), value=PADDING_SEGMENT)
        parent_ids = F.pad(packed.parent_ids, (0, padding), value=PADDING_SEGMENT)
        mask: Tensor | BlockMask = block_mask(segment_ids, parent_ids)
    elif attention == "segments":
        padding, mask = 0, block_table(packed)
    else:
        padding = 0
        visible = dense_mask(packed.segment_ids, packed.parent_ids)
        mask = visible if attention == "sdpa" else _additive(visible, dtype)
    return {
        "input_ids": F.pad(packed.token_ids, (0, padding))[None],
        "position_ids": F.pad(packed.positions, (0, padding))[None],
        "attention_mask": mask,
    }


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    hidden = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, hidden)
