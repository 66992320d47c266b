"""A frozen linear layer with a LoRA adapter, forward and backward in as few passes over its tensors as possible.

    y = W x + b + s B A x,   s = alpha / r      (Hu et al. 2021, arXiv:2106.09685, equation 3)

The products with A and B are small next to those with W, but a careless layout makes them cost as much on a CPU: a
[T, out] matrix times a narrow one runs at a tenth of the speed of the same product with the narrow one in front.
So every factor of rank r is kept as [r, T] or [r, out] here, and added into the frozen layer's result in place.

The adapter is float32. Beside a bfloat16 base, its products take a bfloat16 copy of it, as the engine does, so that no
activation is ever converted to float32. Matrix products add in float32 whatever they take, and the gradients of A and B
leave theirs as float32.

Layers with the same input (query, key and value; gate and up) compute as one: their A matrices are multiplied by the
input as one matrix, and the gradients of the input are added by the matrix products themselves. A float32 base keeps
one layer at a time, because another order of these sums would change its last bits.

Shapes: T tokens, in and out features, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LINEAR_LAYERS = (nn.Linear, Conv1D)
"""GPT-2's Conv1D is a linear layer with its weight transposed."""
LEAST_ONEDNN_TOKENS = 1024
"""oneDNN makes a kernel for each new number of tokens, which costs a shorter row more than it saves."""
_HAS_AVX512 = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
_WITH_ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


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
        self.shared: SharedInput | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen weight [out, in]."""
        return self.base.weight if isinstance(self.base, nn.Linear) else self.base.weight.t()

    def forward(self, hidden: Tensor) -> Tensor:
        if self.shared is not None:
            return self.shared.output(self, hidden)
        return _apply([self], hidden)[0]


class SharedInput:
    """Layers that a model calls one after the other on one tensor. The first call computes all of them.

    A layer that is called on another tensor is right too: then all are computed again.
    """

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        self._layers = list(layers)
        self._input: tuple[Tensor, bool] | None = None  # and whether gradients were recorded
        self._outputs: dict[int, Tensor] = {}  # by index of the layer; those that weren't called yet
        for layer in layers:
            layer.shared = self

    def output(self, layer: LoraLinear, hidden: Tensor) -> Tensor:
        index = next(i for i, own in enumerate(self._layers) if own is layer)
        with_gradient = torch.is_grad_enabled()
        is_known = self._input is not None and self._input[0] is hidden and self._input[1] == with_gradient
        if not is_known or index not in self._outputs:
            self._outputs = dict(enumerate(_apply(self._layers, hidden)))
        out = self._outputs.pop(index)
        self._input = (hidden, with_gradient) if self._outputs else None
        return out


def share_inputs(model: nn.Module) -> int:
    """Let the layers below `model` whose names say that they have one input share it; return their number."""
    found = 0
    for module in model.modules():
        for names in _WITH_ONE_INPUT:
            layers = [layer for name in names if isinstance(layer := getattr(module, name, None), LoraLinear)]
            is_alike = len({(layer.weight.dtype, layer.weight.shape[1]) for layer in layers}) == 1
            if len(layers) > 1 and is_alike and layers[0].weight.dtype != torch.float32:
                SharedInput(layers)
                found += len(layers)
    return found


def _apply(layers: Sequence[LoraLinear], hidden: Tensor) -> list[Tensor]:
    flat = hidden.reshape(-1, hidden.shape[-1])
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.base.bias, layer.lora_A, layer.lora_B)]
    outs: tuple[Tensor, ...] = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        flat, [layer.scale for layer in layers], *tensors
    )
    return [out.view(*hidden.shape[:-1], -1) for out in outs]


class _LoraLinear(torch.autograd.Function):
    """Of any number of layers on one input: `tensors` are weight, bias, A and B of each."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, scales: list[float], *tensors: Any) -> tuple[Tensor, ...]:
        weights, biases, downs, ups = (tensors[i::4] for i in range(4))
        down = _joined(downs).to(hidden.dtype)
        low = down @ hidden.t()
        low_ups = [up.to(hidden.dtype) for up in ups]
        lows = low.split([len(down) for down in downs])
        outs = []
        for weight, bias, up, own, scale in zip(weights, biases, low_ups, lows, scales, strict=True):
            outs.append(frozen_product(hidden, weight, bias).addmm_(own.t(), up.t(), alpha=scale))
        ctx.save_for_backward(hidden, down, low, *weights, *low_ups)
        ctx.scales, ctx.ranks = scales, [len(down) for down in downs]
        ctx.dtype = downs[0].dtype
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, down, low, *others = ctx.saved_tensors
        weights, ups = others[: len(grads)], others[len(grads) :]
        grad_lows = [
            (up.t().contiguous() @ grad.t()).mul_(scale) for up, grad, scale in zip(ups, grads, ctx.scales, strict=True)
        ]
        grad_ups = [
            _product(own, grad, ctx.dtype).mul_(scale).t()
            for own, grad, scale in zip(low.split(ctx.ranks), grads, ctx.scales, strict=True)
        ]
        grad_low = _joined(grad_lows)
        grad_downs = _product(grad_low, hidden, ctx.dtype).split(ctx.ranks)
        grad_hidden = None
        if ctx.needs_input_grad[0]:
            grad_hidden = frozen_product(grads[0], weights[0].t())
            for grad, weight in zip(grads[1:], weights[1:], strict=True):
                grad_hidden.addmm_(grad, weight)
            grad_hidden.addmm_(grad_low.t(), down)
        of_layers = [(None, None, *pair) for pair in zip(grad_downs, grad_ups, strict=True)]
        return grad_hidden, None, *(grad for of_layer in of_layers for grad in of_layer)


def frozen_product(left: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left @ weight^T + bias. With AVX-512, oneDNN multiplies float32 faster than MKL, torch's default.

    It needs no copy of the weight in another layout, neither forward nor backward, where `weight` is a transposed view.
    """
    if torch.compiler.is_compiling():  # torch's compiler chooses by itself, and knows no plain call of oneDNN
        return F.linear(left, weight, bias)
    if _HAS_AVX512 and left.device.type == "cpu" and left.dtype == torch.float32 and len(left) >= LEAST_ONEDNN_TOKENS:
        return torch.ops.mkldnn._linear_pointwise(left, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return F.linear(left, weight, bias)


def _joined(matrices: Sequence[Tensor]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat(list(matrices))


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return left @ right in `dtype`. On a GPU the sums are never rounded to the dtype of the factors."""
    if left.dtype == dtype:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)
