"""Attention over a packed row on a CPU, computed per segment instead of under a dense [T, T] mask.

A row is a table of blocks: each segment attends causally to itself, and fully to the tokens of each segment that it
continues, in one block with all segments that continue it in turn. Every block is one call of torch's flash attention
kernel, and the blocks of a query are merged by their log-sum-exp:

    lse = log sum_b exp(lse_b),   out = sum_b exp(lse_b - lse) out_b.

The backward pass of each block takes the merged `out` and `lse`, from which the kernel recomputes the probabilities of
the whole softmax, as in ring attention (Liu et al. 2023, arXiv:2310.01889). So nothing masked is ever computed.

Shapes: T tokens, H query heads, K key-value heads, D head dimension, P blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from tandem.rl.packed_rows import PackedSequence, segments_of

NAME = "segments"
CAUSAL_TOKENS = 256
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Block:
    """Queries [query_start, query_stop) see keys [key_start, key_stop): all of them, or causally as many."""

    query_start: int
    query_stop: int
    key_start: int
    key_stop: int
    is_causal: int

    @property
    def queries(self) -> slice:
        return slice(self.query_start, self.query_stop)

    @property
    def keys(self) -> slice:
        return slice(self.key_start, self.key_stop)


def block_table(packed: PackedSequence) -> Tensor:
    """Return the blocks of a row, int64 [1, 1, P, 5]: the fields of `Block`.

    Four dimensions, so that transformers passes it to every layer as if it were a mask. A query's own segment comes
    first. Then comes, for each segment, one block of its parent's tokens that the segment and all that continue it
    see. Neighbours that leave their parent at the same place share a block.
    """
    causal: list[list[int]] = []
    full: list[list[int]] = []
    of_parents: dict[tuple[int, int], list[int]] = {}  # by range of keys: begin and end of the segments that see it
    for segment in segments_of(packed):
        _split(segment.begin, segment.stop, causal, full)
        if segment.parent is not None and segment.num_seen > 0:
            begin = segment.parent.begin
            of_parents.setdefault((begin, begin + segment.num_seen), [segment.begin, 0])[1] = segment.end
    full += [[*queries, *keys] for keys, queries in of_parents.items()]
    return torch.tensor([[[*block, 1] for block in causal] + [[*block, 0] for block in full]])[None]


def _split(start: int, stop: int, causal: list[list[int]], full: list[list[int]]) -> None:
    """Add the blocks of one segment. The kernel computes half of a causal block in vain, so long ones are halved."""
    if stop - start <= CAUSAL_TOKENS:
        causal.append([start, stop, start, stop])
        return
    middle = (start + stop) // 2
    _split(start, middle, causal, full)
    _split(middle, stop, causal, full)
    full.append([middle, stop, start, middle])


def restrict(table: Tensor, rows: Tensor) -> Tensor:
    """Return the table of a row of which only the queries at the indices `rows` [R], sorted, are left, side by side.

    Keys are those of the whole row.
    """
    breaks = (rows.diff() > 1).nonzero().squeeze(1) + 1
    pieces = zip(rows.tensor_split(breaks), [0, *breaks.tolist()], strict=True)
    runs = [(int(piece[0]), int(piece[-1]) + 1, at) for piece, at in pieces]
    causal: list[list[int]] = []
    full: list[list[int]] = []
    for block in map(lambda bounds: Block(*bounds), table[0, 0].tolist()):
        parts = [
            (max(start, block.query_start), min(stop, block.query_stop), at - start)
            for start, stop, at in runs
            if start < block.query_stop and block.query_start < stop
        ]
        for start, stop, shift in parts if block.is_causal else []:
            causal.append([start + shift, stop + shift, start, stop, 1])
            if start > block.key_start:
                full.append([start + shift, stop + shift, block.key_start, start, 0])
        if parts and not block.is_causal:
            full.append([parts[0][0] + parts[0][2], parts[-1][1] + parts[-1][2], block.key_start, block.key_stop, 0])
    return torch.tensor([causal + full])[None]


def segment_attention(query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float) -> Tensor:
    """Return [H, T, D] for query [H, T, D] and key, value [K, T, D]; head h uses key-value head h // (H / K)."""
    result: Tensor = _SegmentAttention.apply(query, key, value, blocks, scale)  # type: ignore[no-untyped-call]
    return result


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float) -> Tensor:
        query, key, value = _grouped(query, key, value)
        out = torch.empty_like(query)
        lse = query.new_empty(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))
        for block in blocks:
            part, part_lse = _flash(
                query[:, :, block.queries],
                key[:, :, block.keys],
                value[:, :, block.keys],
                is_causal=bool(block.is_causal),
                scale=scale,
            )
            if block.is_causal:
                out[:, :, block.queries], lse[:, :, block.queries] = part, part_lse
            else:
                _merge(out[:, :, block.queries], lse[:, :, block.queries], part, part_lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.blocks, ctx.scale = blocks, scale
        return out.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        grad = _dense_vectors(grad).reshape(out.shape)
        grad_query = torch.zeros_like(query)
        grad_key, grad_value = torch.zeros_like(key[:, 0]), torch.zeros_like(value[:, 0])
        for block in ctx.blocks:
            of_query, of_key, of_value = _flash_backward(
                grad[:, :, block.queries],
                query[:, :, block.queries],
                key[:, :, block.keys],
                value[:, :, block.keys],
                out[:, :, block.queries],
                lse[:, :, block.queries],
                0.0,
                bool(block.is_causal),
                scale=ctx.scale,
            )
            grad_query[:, :, block.queries] += of_query
            grad_key[:, block.keys] += of_key.sum(1)
            grad_value[:, block.keys] += of_value.sum(1)
        return grad_query.flatten(0, 1), grad_key, grad_value, None, None


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return views [K, H / K, T, D]: the query heads of a key-value head share it without a copy."""
    query, key, value = map(_dense_vectors, (query, key, value))
    heads = (key.shape[0], query.shape[0] // key.shape[0])
    shared = (key[:, None].expand(-1, heads[1], -1, -1), value[:, None].expand(-1, heads[1], -1, -1))
    return query.unflatten(0, heads), *shared


def _dense_vectors(tensor: Tensor) -> Tensor:
    """Return the tensor with a last stride of 1, which the kernels assume without a check."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Add a block's attention to `out` and `lse` in place."""
    total = torch.logaddexp(lse, part_lse)
    out.mul_((lse - total).exp_()[..., None]).add_(part * (part_lse - total).exp_()[..., None])
    lse.copy_(total)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Run `segment_attention` as transformers calls it: [1, heads, T, D], with a block table for a mask."""
    if unknown := [name for name in ("sliding_window", "softcap", "s_aux") if others.get(name) is not None]:
        raise NotImplementedError(f"{type(module).__name__} asks for {', '.join(unknown)} in its attention.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    blocks = [Block(*bounds) for bounds in attention_mask[0, 0].tolist()]
    width = value.shape[-1]  # narrower than the query's in multi-head latent attention
    padded = F.pad(value, (0, query.shape[-1] - width)) if width < query.shape[-1] else value
    out = segment_attention(query[0], key[0], padded[0], blocks, scale)[..., :width]
    return out.transpose(0, 1)[None], None


AttentionInterface.register(NAME, _attention)
