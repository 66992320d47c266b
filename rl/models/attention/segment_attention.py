"""Attention over a packed row on a CPU, computed per segment instead of under a dense [T, T] mask.

A row is a table of blocks (`block_table`). Every block is one call of torch's flash attention kernel, and the blocks of
a query are merged by their log-sum-exp:

    lse = log sum_b exp(lse_b),   out = sum_b exp(lse_b - lse) out_b.

The backward pass of each block takes the merged `out` and `lse`, from which the kernel recomputes the probabilities of
the whole softmax, as in ring attention (Liu et al. 2023, arXiv:2310.01889). So little is computed that is masked.

An attention sink (gpt-oss) is one more score of a head, with a value of 0: it is merged into `lse` in the same way.

Shapes: T tokens, H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from tandem.rl.models.attention.block_table import Block, blocks_of
from tandem.rl.models.attention.keywords import refuse_unknown

NAME = "segments"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@torch.compiler.disable  # type: ignore[untyped-decorator]
def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float, sinks: Tensor | None = None
) -> Tensor:
    """Return [H, T, D] for query [H, T, D] and key, value [K, T, D]; head h uses key-value head h // (H / K).

    `sinks` [H] are frozen. Raises ValueError for the blocks of another row, with which the kernel would crash.
    """
    num_queries, num_keys = max(b.query_stop for b in blocks), max(b.key_stop for b in blocks)
    if num_queries != query.shape[1] or num_keys > key.shape[1]:
        raise ValueError(
            f"The blocks are of {num_queries} queries and {num_keys} keys, but there are {query.shape[1]} and "
            f"{key.shape[1]}."
        )
    assert sinks is None or not sinks.requires_grad, "sinks are frozen: no gradient is computed for them"
    result: Tensor = _SegmentAttention.apply(query, key, value, blocks, scale, sinks)  # type: ignore[no-untyped-call]
    return result


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: list[Block],
        scale: float,
        sinks: Tensor | None,
    ) -> Tensor:
        query, key, value = _grouped(query, key, value)
        out = torch.empty_like(query)
        lse = query.new_empty(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))
        for block in blocks:
            part, part_lse = _flash(
                query[:, :, block.queries],
                key[:, :, block.keys],
                value[:, :, block.keys],
                is_causal=bool(block.is_causal and not block.window),
                attn_mask=_mask(block, query.dtype),
                scale=scale,
            )
            if block.is_causal:
                out[:, :, block.queries], lse[:, :, block.queries] = part, part_lse
            else:
                _merge(out[:, :, block.queries], lse[:, :, block.queries], part, part_lse)
        if sinks is not None:
            total = torch.logaddexp(lse, sinks.detach().to(lse.dtype).view(*lse.shape[:2], 1))
            out.mul_((lse - total).exp_()[..., None])
            lse = total
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.blocks, ctx.scale = blocks, scale
        return out.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
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
                bool(block.is_causal and not block.window),
                attn_mask=_mask(block, query.dtype),
                scale=ctx.scale,
            )
            grad_query[:, :, block.queries] += of_query
            grad_key[:, block.keys] += of_key.sum(1)
            grad_value[:, block.keys] += of_value.sum(1)
        return grad_query.flatten(0, 1), grad_key, grad_value, None, None, None


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return views [K, H / K, T, D]: the query heads of a key-value head share it without a copy."""
    query, key, value = map(_dense_vectors, (query, key, value))
    heads = (key.shape[0], query.shape[0] // key.shape[0])
    shared = (key[:, None].expand(-1, heads[1], -1, -1), value[:, None].expand(-1, heads[1], -1, -1))
    return query.unflatten(0, heads), *shared


def _dense_vectors(tensor: Tensor) -> Tensor:
    """Return the tensor with a last stride of 1, which the kernels assume without a check."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _mask(block: Block, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to the scores of a block with a window."""
    if not block.window:
        return None
    hidden = block.hidden()
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)


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
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Run `segment_attention` as transformers calls it: [1, heads, T, D], with a block table for a mask."""
    refuse_unknown(module, others)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    width = value.shape[-1]  # narrower than the query's in multi-head latent attention, wider in MiMo
    widest = max(width, query.shape[-1])
    query, key, value = (
        F.pad(tensor, (0, widest - tensor.shape[-1])) if tensor.shape[-1] < widest else tensor
        for tensor in (query, key, value)
    )
    out = segment_attention(query[0], key[0], value[0], blocks_of(attention_mask), scale, s_aux)[..., :width]
    return out.transpose(0, 1)[None], None


AttentionInterface.register(NAME, _attention)
