"""Correct and faster LoRA matrix products for vLLM on a CPU.

Stock vLLM 0.32 has two faults in `vllm/lora/ops/torch_ops/lora_ops.py`:

1. A row that uses no adapter carries the slot index -1. It is used as a Python index, so the row gets the adapter of
   the *last* slot instead of none.
2. `weights[indices]` copies one adapter matrix per row ([rows, out, in] elements) before it multiplies.

The functions below make one matrix product over the adapters of all slots and select each row's own, with the
signatures, dtypes and results that vLLM expects. Weights must be finite: in an expansion the other slots' weights are
multiplied by zero. CUDA isn't affected: vLLM has its own kernels there.

Importing this module imports no vLLM. The engine has every worker process call `fix_cpu_lora`.
"""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)

FIXED_VERSION = "0.32.0"


def bgmv_shrink(
    inputs: torch.Tensor, lora_a: torch.Tensor, outputs: torch.Tensor, slots: torch.Tensor, scaling: float = 1.0
) -> None:
    """outputs[t, :r] = scaling * lora_a[slots[t]] @ inputs[t], or 0 where slots[t] is negative.

    inputs [T, in]; lora_a [S, 1, r, in] or [S, r, in]; outputs [T, >= r], written in place; slots int64 [T].
    """
    (num_slots, *_, rank, width), dtype = lora_a.shape, outputs.dtype
    products = inputs.to(dtype) @ lora_a.reshape(num_slots * rank, width).to(dtype).T
    own = slots.clamp(min=0).view(-1, 1, 1).expand(-1, 1, rank)
    selected = products.view(-1, num_slots, rank).gather(1, own).squeeze(1)
    outputs[:, :rank] = scaling * selected.masked_fill((slots < 0).unsqueeze(1), 0)


def bgmv_expand(
    inputs: torch.Tensor, lora_b: torch.Tensor, outputs: torch.Tensor, slots: torch.Tensor, add_inputs: bool = True
) -> None:
    """Like `bgmv_expand_slice` from column 0; columns that only one of the two tensors has are left out."""
    bgmv_expand_slice(inputs, lora_b, outputs, slots, 0, min(lora_b.shape[-2], outputs.shape[1]), add_inputs)


def bgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b: torch.Tensor,
    outputs: torch.Tensor,
    slots: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """outputs[t, offset:offset + size] += lora_b[slots[t]] @ inputs[t], nothing where slots[t] is negative.

    With `add_inputs` False the product replaces what was there (0 where slots[t] is negative).
    inputs [T, r]; lora_b [S, 1, out, r] or [S, out, r]; outputs [T, >= offset + size], changed in place;
    slots int64 [T].
    """
    (num_slots, *_, rank), dtype = lora_b.shape, outputs.dtype
    is_own = slots.unsqueeze(1) == torch.arange(num_slots)  # [T, S]
    spread = torch.where(is_own.unsqueeze(2), inputs.to(dtype).unsqueeze(1), 0).view(-1, num_slots * rank)
    matrices = lora_b.view(num_slots, -1, rank)[:, :slice_size].to(dtype)
    product = spread @ matrices.transpose(1, 2).reshape(num_slots * rank, slice_size)
    target = outputs[:, slice_offset : slice_offset + slice_size]
    if add_inputs:
        target += product
    else:
        target.copy_(product)


def fix_cpu_lora() -> bool:
    """Replace vLLM's functions by those above, in this process. Return False where they don't apply."""
    import vllm
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    if vllm.__version__ != FIXED_VERSION:
        logger.warning("The CPU LoRA fix is for vLLM %s, not %s, and is skipped.", FIXED_VERSION, vllm.__version__)
        return False
    # The wrapper holds its own references; the sgmv_* functions look theirs up in lora_ops.
    for module in (lora_ops, punica_cpu):
        for function in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
            setattr(module, function.__name__, function)
    return True
