"""The fused experts of a mixture with a LoRA adapter on each expert.

transformers keeps the experts of a layer in two tensors, gate and up projections [E, 2I, H] and down projections
[E, H, I]. For a token that the router sends to expert e,

    g = W1[e] x + s B1[e] A1[e] x,   y = W2[e] h(g) + s B2[e] A2[e] h(g),   s = alpha / r,

with h the family's own gate. Tokens are sorted by expert, and every product is one grouped matrix product. The router
is frozen.

The tensors have the names and the layout of PEFT's `target_parameters`, which vLLM reads too: A [E r, in] has the rows
of expert e from e r on, and B [out, r E] has the columns of expert e at e, e + E, e + 2E, ... The module counts as the
down projection, and its `base_layer` as gate and up.

Shapes: T tokens, K experts per token, S = T K, E experts, H hidden, I inner, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem.rl.models.lora.adapter_config import EXPERT_PARAMETERS, EXPERTS

TARGET = EXPERTS
PARAMETERS = EXPERT_PARAMETERS
_RANK_STEP = 8  # a grouped product on CUDA takes rows of multiples of 16 bytes


def is_fused_experts(module: nn.Module) -> bool:
    """Return whether these are experts in two tensors, each with a gate."""
    tensors = [getattr(module, name.rpartition(".")[2], None) for name in PARAMETERS]
    return bool(getattr(module, "has_gate", False)) and all(isinstance(t, Tensor) and t.dim() == 3 for t in tensors)


class LoraExperts(nn.Module):
    """Takes the place of `base` in its model. The factors are trained from 0 on; `base` is frozen."""

    def __init__(self, base: Any, r: int, scale: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.gate_up = _Factors(base.gate_up_proj, base.is_transposed, r)
        self.down = _Factors(base.down_proj, base.is_transposed, r)
        self.scale = scale

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch compiles grouped products in bfloat16 only
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return [T, H] for hidden states [T, H], the indices [T, K] of their experts and the experts' weights."""
        num_tokens, top_k = top_k_index.shape
        experts, order = top_k_index.reshape(-1).sort(stable=True)
        every = torch.arange(self.gate_up.num_experts, device=experts.device)
        ends = torch.searchsorted(experts, every, right=True).int()
        rows = hidden_states[order // top_k]
        inner = self.base._apply_gate(self._product("gate_up_proj", self.gate_up, rows, experts, ends))
        out = self._product("down_proj", self.down, inner, experts, ends)
        out = out * top_k_weights.reshape(-1)[order, None]
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        # Added per token in a fixed order, unlike by index_add on CUDA.
        return out[place].view(num_tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)

    def _product(self, name: str, factors: _Factors, rows: Tensor, experts: Tensor, ends: Tensor) -> Tensor:
        """Return the product of sorted rows [S, in] with the weights of their experts and their adapters: [S, out]."""
        weight = getattr(self.base, name)
        out = F.grouped_mm(rows, weight if self.base.is_transposed else weight.transpose(-2, -1), offs=ends)
        if self.base.has_bias:
            out = out + getattr(self.base, f"{name}_bias")[experts]
        down, up = factors.matrices(rows.dtype)
        return out.add(F.grouped_mm(F.grouped_mm(rows, down, offs=ends), up, offs=ends), alpha=self.scale)


class _Factors(nn.Module):
    """A and B of every expert, as they are stored."""

    def __init__(self, weight: Tensor, is_transposed: bool, r: int) -> None:
        super().__init__()
        self.num_experts, *sizes = weight.shape
        in_features, out_features = sizes if is_transposed else sizes[::-1]
        place: dict[str, Any] = {
            "device": weight.device,
            "dtype": torch.promote_types(weight.dtype, torch.float32),
        }
        self.lora_A = nn.Parameter(torch.zeros(self.num_experts * r, in_features, **place))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r * self.num_experts, **place))

    def matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A [E, in, r] and B [E, r, out] in `dtype`, with a rank that grouped products take."""
        down = self.lora_A.to(dtype).unflatten(0, (self.num_experts, -1))
        up = self.lora_B.to(dtype).unflatten(1, (-1, self.num_experts)).permute(2, 1, 0)
        missing = -down.shape[1] % _RANK_STEP
        if missing:
            down, up = F.pad(down, (0, 0, 0, missing)), F.pad(up, (0, 0, 0, missing))
        return down.transpose(1, 2), up.contiguous()
