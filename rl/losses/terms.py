"""What an objective returns for one packed sequence."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """Sums over the N trained positions of one packed sequence: scalars, so that they add up over sequences."""

    loss_sum: Tensor
    """sum of L_t w_t; differentiable."""
    num_tokens: int
    ratio_sum: Tensor
    """sum of the importance ratio at the configured level, before cap and mask; detached."""
    num_clipped: Tensor
    """tokens whose ratio is outside the clip range."""
    kl_sum: Tensor | None
    """sum of log pi_src - log pi_ref; None without a penalty."""
