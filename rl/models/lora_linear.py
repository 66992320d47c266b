"""A frozen linear layer with a LoRA adapter, forward and backward in as few passes over its tensors as possible.

    y = W x + b + s B A x,   s = alpha / r      (Hu et al. 2021, arXiv:2106.09685, equation 3)

The products with A and B are small next to those with W, but a careless layout makes them cost as much on a CPU: a
[T, out] matrix times a narrow one runs at a tenth of the speed of the same product with the narrow one in front.
So every factor of rank r is kept as [r, T] or [r, out] here, and added into the frozen layer's result in place.

The adapter is float32. Beside a bfloat16 base, its part is computed and added in float32, then rounded once.

Shapes: T tokens, in and out features, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LINEAR_LAYERS = (nn.Linear, Conv1D)
"""GPT-2's Conv1D is a linear layer with its weight transposed."""


class LoraLinear(nn.Module):
    """Takes the place of `base` in its model. `lora_A` [r, in] and `lora_B` [out, r] are trained
    from 0 on; `base` is frozen."""

    def __init__(self, base: nn.Linear | Conv1D, r: int, scale: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        out_features, in_features = self.weight.shape
        place: dict[str, Any] = {
            "device": self.weight.device,
            "dtype": torch.promote_types(self.weight.dtype, torch.float32),
        }
        self.lora_A = nn.Parameter(torch.zeros(r, in_features, **place))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r, **place))
        self.scale = scale

    @property
    def weight(self) -> Tensor:
        """The frozen weight [out, in]."""
        return self.base.weight if isinstance(self.base, nn.Linear) else self.base.weight.t()

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        out: Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
            flat, self.weight, self.base.bias, self.lora_A, self.lora_B, self.scale
        )
        return out.view(*hidden.shape[:-1], -1)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        low = down @ hidden.to(down.dtype).t()
        out = _add(F.linear(hidden, weight, bias), low.t(), up.t(), scale)
        ctx.save_for_backward(hidden, weight, down, up, low)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        hidden, weight, down, up, low = ctx.saved_tensors
        wide = grad.to(down.dtype)
        grad_low = (up.t().contiguous() @ wide.t()).mul_(ctx.scale)
        grad_down = grad_low @ hidden.to(down.dtype)
        grad_up = (low @ wide).mul_(ctx.scale).t()
        if not ctx.needs_input_grad[0]:
            return None, None, None, grad_down, grad_up, None
        return _add(grad @ weight, grad_low.t(), down, 1.0), None, None, grad_down, grad_up, None


def _add(result: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return result + scale * left @ right, in place, in the dtype of `result`, rounded once."""
    if result.dtype == left.dtype:
        return result.addmm_(left, right, alpha=scale)
    return result.copy_(torch.addmm(result.to(left.dtype), left, right, alpha=scale))
