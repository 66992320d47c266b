"""Attention masks of packed sequences, for every attention implementation.

`visibility` states the rule of `packed_rows` once, for a dense mask (SDPA, eager) and for a FlexAttention block mask.
Attention by segments (`segment_attention`) takes a table of blocks instead; tests compare it with the dense mask.
Position ids are always passed to the model, so that a segment continues its parent's positions wherever it is in the
row.

Shapes: T tokens of a packed sequence, P >= T tokens that are fed to the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from tandem.rl.models import flex_attention
from tandem.rl.models.recurrent_layers import boundary_inputs
from tandem.rl.models.segment_attention import block_table
from tandem.rl.packed_rows import PackedSequence, seen_until

Attention = Literal["segments", "sdpa", "eager", "flex_attention"]
FLEX_BLOCK_SIZE = 128


def transformers_name(attention: Attention) -> str:
    """Return the name under which transformers has the implementation."""
    return flex_attention.NAME if attention == "flex_attention" else attention


def visibility(seen_until: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the rule as a FlexAttention mask_mod: (batch, head, query, key) indices to bool, True if query sees key.

    A query sees itself and the earlier keys that are seen until after it. [T]
    """

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < seen_until[key])

    return sees


def dense_mask(packed: PackedSequence) -> Tensor:
    """Return the rule for all pairs: bool [1, 1, T, T], query by key."""
    until = seen_until(packed)
    index = torch.arange(packed.num_tokens, device=until.device)
    zero = index.new_zeros(())
    return visibility(until)(zero, zero, index[:, None], index[None, :])[None, None]


def block_mask(packed: PackedSequence, padding: int = 0) -> BlockMask:
    """Return the rule as a block mask over P = T + padding tokens, without a [P, P] tensor. P is whole blocks.

    Padding sees no token of the row, and no token of the row sees padding.

    Which blocks are empty, partly visible or full follows from the least and the largest `seen_until` of a block of
    keys. Below the diagonal every key comes before every query, so a query sees some key of the block if it comes
    before the largest, and all of them if it comes before the least. A block on the diagonal is always partly visible.
    """
    num_tokens = packed.num_tokens + padding
    until = F.pad(seen_until(packed), (0, padding), value=num_tokens)
    least, largest = until.view(-1, FLEX_BLOCK_SIZE).aminmax(dim=1)
    first = torch.arange(0, num_tokens, FLEX_BLOCK_SIZE, device=until.device)  # of each block
    before = first[None, :] < first[:, None]
    full = before & (first[:, None] + FLEX_BLOCK_SIZE <= least[None, :])
    partial = (before | (first[None, :] == first[:, None])) & (first[:, None] < largest[None, :]) & ~full
    return BlockMask.from_kv_blocks(
        *_listed(partial), *_listed(full), BLOCK_SIZE=FLEX_BLOCK_SIZE, mask_mod=visibility(until)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return a table of blocks, bool [queries, keys], as FlexAttention has it: the number of blocks of each query block
    [1, 1, queries], and the blocks [1, 1, queries, keys], first those that are counted. int32."""
    number, order = blocks.sum(dim=1), torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
    return number.int()[None, None], order.int()[None, None]


def forward_inputs(
    packed: PackedSequence, attention: Attention, dtype: torch.dtype, shares_prefixes: bool = True
) -> dict[str, Tensor | BlockMask]:
    """Return `packed` as keyword arguments of a transformers decoder, batch size 1.

    For FlexAttention the row is padded to P tokens, whole blocks and at least two: torch compiles code of its own for
    tensors with a size of 1. `dtype` is the model's, which eager attention adds to its scores. A model that can't share
    prefixes gets the boundaries of sequences for its recurrent layers.
    """
    padding = 0
    if attention == "flex_attention":
        padding = max(-packed.num_tokens % FLEX_BLOCK_SIZE, 2 * FLEX_BLOCK_SIZE - packed.num_tokens)
        mask: Tensor | BlockMask = block_mask(packed, padding)
    elif attention == "segments":
        mask = block_table(packed)
    elif attention == "sdpa":
        mask = dense_mask(packed)
    else:
        mask = _additive(dense_mask(packed), dtype)
    return {
        "input_ids": F.pad(packed.token_ids, (0, padding))[None],
        "position_ids": F.pad(packed.positions, (0, padding))[None],
        "attention_mask": mask,
        **({} if shares_prefixes else boundary_inputs(packed, padding)),
    }


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    hidden = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, hidden)
