"""Correct and faster LoRA matrix products for vLLM on a CPU.

Stock vLLM 0.32 has two faults in `vllm/lora/ops/torch_ops/lora_ops.py`:

1. A row that uses no adapter carries the slot index -1. It is used as a Python index, so the row gets the adapter of
   the *last* slot instead of none.
2. `weights[indices]` copies one adapter matrix per row ([rows, out, in] elements) before it multiplies.

The functions below make one matrix product over the adapters of all slots and select each row's own, with the
signatures, dtypes and results that vLLM expects. Weights must be finite: in an expansion the other slots' weights are
multiplied by zero. In a step whose rows all use one adapter, `add_adapter` multiplies by that one alone. CUDA isn't
affected: vLLM has its own kernels there.

Importing this module imports no vLLM. The engine has every worker process call `fix_cpu_lora`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

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


def slot_of_all(slots: torch.Tensor) -> int | None:
    """Return the slot that all rows use, negative for no adapter; None if they use several. `slots` int64 [T]."""
    if not len(slots):
        return None
    first = int(slots[0])
    return first if len(slots) == 1 or bool((slots == first).all()) else None


def add_adapter(
    outputs: torch.Tensor,
    inputs: torch.Tensor,
    lora_a: Sequence[torch.Tensor],
    lora_b: Sequence[torch.Tensor],
    slot: int,
    scaling: float,
    sizes: Sequence[int],
) -> None:
    """Add scaling * lora_b[slot] @ (lora_a[slot] @ inputs[t]) to each row, nothing for a negative slot.

    inputs [T, in]; lora_a and lora_b as above, one for each slice of the outputs, which has its entry of `sizes`;
    outputs [T, sum of sizes], changed in place. As in vLLM, the inner product is float32.
    """
    if slot < 0:
        return
    start, wide = 0, inputs.float()
    for own_a, own_b, size in zip(lora_a, lora_b, sizes, strict=True):
        low = wide @ own_a[slot].view(own_a.shape[-2:]).float().T
        factor = own_b[slot].view(own_b.shape[-2:])[:size].to(outputs.dtype)
        outputs[:, start : start + size].addmm_(low.to(outputs.dtype), factor.T, alpha=scaling)
        start += size


def skip_selection(wrapper: Any) -> None:
    """Have vLLM's class of LoRA products use `add_adapter` in steps whose rows all use one adapter.

    Policies are mostly asked one version at a time, and then half of the time for an adapter was for telling rows
    apart.
    """
    update, add = wrapper.update_metadata, wrapper.add_lora_linear

    def update_metadata(self: Any, *args: Any, **options: Any) -> None:
        update(self, *args, **options)
        self.slot_of_all = slot_of_all(self.token_lora_indices)

    def add_lora_linear(
        self: Any, y: Any, x: Any, lora_a: Any, lora_b: Any, scale: float, sizes: Any, **options: Any
    ) -> None:
        if self.slot_of_all is None or options:
            add(self, y, x, lora_a, lora_b, scale, sizes, **options)
        else:
            rows, inputs = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            add_adapter(rows, inputs, lora_a, lora_b, self.slot_of_all, scale, sizes)

    wrapper.slot_of_all = None  # until a step has begun
    wrapper.update_metadata, wrapper.add_lora_linear = update_metadata, add_lora_linear


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
    skip_selection(punica_cpu.PunicaWrapperCPU)
    return True
