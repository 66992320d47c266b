"""Attention masks of packed sequences, for every attention implementation.

`visibility` states the rule of `packed_rows` once, for a dense mask (SDPA, eager) and for a FlexAttention block mask.
Attention by segments (`segment_attention`) takes a table of blocks instead; tests compare it with the dense mask.
Position ids are always passed to the model, so that a segment continues its parent's positions wherever it is in the
row. Layers with a sliding window have a mask of their own, by positions (`windows`).

Shapes: T tokens of a packed sequence, P >= T tokens that are fed to the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from tandem.rl.models.attention import flex_attention
from tandem.rl.models.attention.block_table import block_table
from tandem.rl.models.attention.segment_attention import NAME as SEGMENTS
from tandem.rl.models.attention.windows import FULL, Windows
from tandem.rl.models.layers.recurrent_layers import RECURRENT, boundary_inputs
from tandem.rl.packed_rows import PackedSequence, seen_until

Attention = Literal["segments", "sdpa", "eager", "flex_attention"]
FLEX_BLOCK_SIZE = flex_attention.BLOCK_SIZE


def transformers_name(attention: Attention) -> str:
    """Return the name under which transformers has the implementation."""
    return flex_attention.NAME if attention == "flex_attention" else attention


def visibility(
    seen_until: Tensor, positions: Tensor | None = None, window: int | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the rule as a FlexAttention mask_mod: (batch, head, query, key) indices to bool, True if query sees key.

    A query sees itself and the earlier keys that are seen until after it [T], with a window only the latest `window`
    `positions` [T].
    """

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < seen_until[key])

    if window is None or positions is None:
        return sees

    def sees_near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(batch, head, query, key) & (positions[query] - positions[key] < window)

    return sees_near


def dense_mask(packed: PackedSequence, window: int | None = None) -> Tensor:
    """Return the rule for all pairs: bool [1, 1, T, T], query by key."""
    until = seen_until(packed)
    index = torch.arange(packed.num_tokens, device=until.device)
    zero = index.new_zeros(())
    return visibility(until, packed.positions, window)(zero, zero, index[:, None], index[None, :])[None, None]


def block_mask(packed: PackedSequence, padding: int = 0, window: int | None = None) -> BlockMask:
    """Return the rule as a block mask over P = T + padding tokens, without a [P, P] tensor. P is whole blocks.

    Padding sees no token of the row, and no token of the row sees padding.

    Which blocks are empty, partly visible or full follows from the least and the largest `seen_until` of a block of
    keys. Below the diagonal every key comes before every query, so a query sees some key of the block if it comes
    before the largest, and all of them if it comes before the least. A block on the diagonal is always partly visible.
    The least and the largest positions bound in the same way what a window hides.
    """
    num_tokens = packed.num_tokens + padding
    until = F.pad(seen_until(packed), (0, padding), value=num_tokens)
    positions = F.pad(packed.positions, (0, padding))
    least, largest = until.view(-1, FLEX_BLOCK_SIZE).aminmax(dim=1)
    first = torch.arange(0, num_tokens, FLEX_BLOCK_SIZE, device=until.device)  # of each block
    before = first[None, :] < first[:, None]
    full = before & (first[:, None] + FLEX_BLOCK_SIZE <= least[None, :])
    some = (before | (first[None, :] == first[:, None])) & (first[:, None] < largest[None, :])
    if window is not None:
        earliest, latest = positions.view(-1, FLEX_BLOCK_SIZE).aminmax(dim=1)
        full &= latest[:, None] - earliest[None, :] < window
        some &= earliest[:, None] - latest[None, :] < window
    rule = visibility(until, positions, window)
    return BlockMask.from_kv_blocks(*_listed(some & ~full), *_listed(full), BLOCK_SIZE=FLEX_BLOCK_SIZE, mask_mod=rule)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return a table of blocks, bool [queries, keys], as FlexAttention has it: the number of blocks of each query block
    [1, 1, queries], and the blocks [1, 1, queries, keys], first those that are counted. int32."""
    number, order = blocks.sum(dim=1), torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
    return number.int()[None, None], order.int()[None, None]


def forward_inputs(
    packed: PackedSequence,
    attention: Attention,
    dtype: torch.dtype,
    windows: Windows = FULL,
    shares_prefixes: bool = True,
) -> dict[str, Any]:
    """Return `packed` as keyword arguments of a transformers decoder, batch size 1.

    For FlexAttention the row is padded to P tokens, whole blocks and at least two: torch compiles code of its own for
    tensors with a size of 1. `dtype` is the model's, which eager attention adds to its scores. A decoder with several
    kinds of layers gets the masks by kind. A model that can't share prefixes gets the boundaries of sequences for its
    recurrent layers.
    """
    padding = 0
    if attention == "flex_attention":
        padding = max(-packed.num_tokens % FLEX_BLOCK_SIZE, 2 * FLEX_BLOCK_SIZE - packed.num_tokens)
    reaches = windows if attention == "flex_attention" else _needed(windows, packed)
    masks = {reach: _mask(packed, attention, dtype, padding, reach) for reach in set(reaches.values())}
    by_kind: dict[str, Any] = {kind: masks[reach] for kind, reach in reaches.items()}
    if not shares_prefixes:
        by_kind[RECURRENT] = None  # its boundaries are enough
    return {
        "input_ids": F.pad(packed.token_ids, (0, padding))[None],
        "position_ids": F.pad(packed.positions, (0, padding))[None],
        "attention_mask": by_kind if len(by_kind) > 1 else next(iter(by_kind.values())),
        **({} if shares_prefixes else boundary_inputs(packed, padding)),
    }


def _needed(windows: Windows, packed: PackedSequence) -> Windows:
    """Return the windows, None for those that hide nothing of the row. (FlexAttention would compile for that, too.)"""
    longest = int(packed.positions.max()) + 1 if any(windows.values()) else 0
    return {kind: window if window and window < longest else None for kind, window in windows.items()}


def _mask(
    packed: PackedSequence, attention: Attention, dtype: torch.dtype, padding: int, window: int | None
) -> Tensor | BlockMask:
    if attention == "flex_attention":
        return block_mask(packed, padding, window)
    if attention == SEGMENTS:
        return block_table(packed, window)
    if attention == "sdpa":
        return dense_mask(packed, window)
    return _additive(dense_mask(packed, window), dtype)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    hidden = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, hidden)
