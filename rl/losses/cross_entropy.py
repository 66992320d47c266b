"""The objective of supervised fine-tuning.

    L_t = -log pi_theta(t)        at each trained token t

The learner divides the sum by the trained tokens of the gradient step, so every token counts the same, however long its
sequence is.
"""

from __future__ import annotations

import torch

from tandem.rl.losses.inputs import LossInputs
from tandem.rl.losses.terms import LossTerms


def cross_entropy(inputs: LossInputs) -> LossTerms:
    """Return the summed loss of one packed sequence, differentiable in `inputs.policy_logprobs`."""
    losses = -inputs.policy_logprobs[inputs.loss_mask]
    none = torch.zeros((), device=losses.device)
    return LossTerms(losses.sum(), losses.numel(), ratio_sum=none + losses.numel(), num_clipped=none, kl_sum=None)
