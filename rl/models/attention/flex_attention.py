"""FlexAttention over packed rows: one compiled kernel for rows of every length, with grouped key-value heads.

transformers has a wrapper of its own. It repeats keys and values where the number of query heads isn't a power of two
(28 and 40 heads are common), although torch needs that only for its decoding kernel, and it compiles for each length.
Here the decoding kernel is never chosen, and the length is symbolic, so that a learner compiles when it starts and
never inside a job.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, FlexKernelOptions, flex_attention
from transformers import AttentionInterface

from tandem.rl.models.attention.keywords import refuse_unknown
from tandem.rl.models.layers.any_length import compile_for_any_length

NAME = "packed_flex"
"""Without "flex_attention" in it: transformers refuses such a name for families that don't declare torch's own."""
BLOCK_SIZE = 128
"""Tokens of a block of queries or keys."""
_KERNEL: FlexKernelOptions = {"BACKEND": "TRITON"}
"""Not the decoding kernel, which torch chooses for fewer than 128 queries."""


Flex = Callable[..., Tensor]


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: BlockMask,
    scale: float,
    sinks: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return [1, H, T, D] for query [1, H, T, D] and key, value [1, K, T, D]; H is a multiple of K.

    A sink [H] is one more score of a head, with a value of 0: it leaves sigmoid(lse - sink) of the output.
    """
    lengths, sizes = (query.shape[-2], key.shape[-2]), (BLOCK_SIZE, BLOCK_SIZE)
    is_fitting = lengths == tuple(block_mask.seq_lengths) and block_mask.BLOCK_SIZE == sizes
    if not is_fitting or lengths[0] % BLOCK_SIZE or lengths[1] % BLOCK_SIZE:
        # Torch guards on it, and so knows it when it makes a kernel: whole blocks need no checks of bounds.
        raise ValueError(
            f"FlexAttention takes whole blocks of {BLOCK_SIZE} tokens under a mask for them, not {lengths}."
        )
    options: dict[str, Any] = {
        "block_mask": block_mask, "scale": scale, "enable_gqa": True, "kernel_options": _KERNEL,
        "score_mod": None if softcap is None else _capped(query.new_full((), softcap, dtype=torch.float32)),
    }  # fmt: skip
    if sinks is None:
        out: Tensor = flex_attention(query, key, value, **options)
        return out
    out, aux = flex_attention(query, key, value, **options, return_aux=AuxRequest(lse=True))
    kept = torch.sigmoid(aux.lse - sinks.to(aux.lse.dtype)[None, :, None])
    return out * kept[..., None].to(out.dtype)


def _capped(softcap: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return a FlexAttention score_mod: scores s become c tanh(s / c).

    The cap is a tensor, because a compiled kernel can't capture a number that torch holds symbolically.
    """

    def cap(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


@cache
def _compiled() -> Flex:
    """Return `flex` compiled for any length. It raises where torch would else compute without a kernel, with scores of
    [H, T, T] numbers."""
    return compile_for_any_length(flex, fullgraph=True)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Run FlexAttention as transformers calls it, with a block mask."""
    refuse_unknown(module, others)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = flex if torch.compiler.is_compiling() else _compiled()
    return attend(query, key, value, attention_mask, scale, s_aux, softcap).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
