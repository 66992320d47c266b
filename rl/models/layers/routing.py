"""How close the routers of a mixture come to a tie, where rounding decides which experts a token goes to.

Engine and learner compute the same router with other kernels, so that their scores differ by rounding. Where the last
expert that a token goes to is ahead of the next one by less than that, the two may choose different experts, and the
token's logprob differs by more than rounding. The share of such choices says how often this can happen.

Shapes: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RouterMargins:
    """Counts choices of the routers below `decoder`, in every forward pass that a gradient follows.

    margins = RouterMargins(decoder)
    decoder(...)
    near_ties, choices = margins.counts.tolist()
    """

    def __init__(self, decoder: nn.Module) -> None:
        routers: list[Any] = [module for module in decoder.modules() if _is_router(module)]
        self.num_routers = len(routers)
        device = routers[0].weight.device if routers else None
        self.counts = torch.zeros(2, dtype=torch.float64, device=device)
        """Choices within rounding of a tie, and all choices: one per token and layer."""
        for router in routers:
            router.register_forward_hook(self._count)

    def _count(self, router: Any, _inputs: Any, outputs: Any) -> None:
        if torch.is_grad_enabled():
            self._add(router, outputs)

    @torch.no_grad()
    def _add(self, router: Any, outputs: Any) -> None:
        logits, chosen = _logits_and_chosen(outputs, len(router.weight))
        if logits is None or chosen is None:
            return  # a family with a router of another kind
        margins, rounding = margins_of(_scores(router, logits), chosen.flatten(0, -2), router.weight.dtype)
        self.counts[0] += (margins <= rounding).sum()
        self.counts[1] += len(margins)


def margins_of(scores: Tensor, chosen: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return by how much the last chosen expert of each token is ahead of the next one [T], and its rounding [T].

    Experts ahead of a chosen one are those of groups that the router has left out. `scores` are [T, E], `chosen`
    [T, K], and `dtype` is that of the base model.
    """
    last = scores.gather(1, chosen).amin(dim=1, keepdim=True)
    is_left_out = scores > last
    others = scores.scatter(1, chosen, -torch.inf).masked_fill(is_left_out, -torch.inf)
    return (last - others.amax(dim=1, keepdim=True)).squeeze(1), torch.finfo(dtype).eps * scores.abs().amax(dim=1)


def _logits_and_chosen(outputs: Any, num_experts: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the logits [.., E] and the indices [.., K] among a router's outputs, which families order differently."""
    tensors = [output for output in outputs if isinstance(output, Tensor)] if isinstance(outputs, tuple) else []
    logits = [t for t in tensors if t.is_floating_point() and t.shape[-1] == num_experts]
    chosen = [t for t in tensors if not t.is_floating_point()]
    return logits[0] if logits else None, chosen[0] if chosen else None


def _scores(router: nn.Module, logits: Tensor) -> Tensor:
    """Return what the router compares: its logits, or sigmoids with a bias that balances the load (DeepSeek-V3)."""
    bias = getattr(router, "e_score_correction_bias", None)
    scores = logits.float() if bias is None else logits.float().sigmoid() + bias
    return scores.flatten(0, -2)


def _is_router(module: nn.Module) -> bool:
    """Return whether a module is a router that returns logits and indices, as far as its name says it."""
    return type(module).__name__.lower().endswith("topkrouter") and isinstance(module.weight, Tensor)
