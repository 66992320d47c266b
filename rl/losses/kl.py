"""The KL penalty, as an adjustment of advantages over N trained positions.

    k_t    = log pi_src(t) - log pi_ref(t)
    A_t   += kl_coef * (kbar - k_t),      kbar = mean of k over the trained tokens of the whole gradient step

k_t is the plain log-ratio estimate of KL(pi_src || pi_ref) on sampled tokens (k1 in Schulman 2020, "Approximating
KL Divergence"). A token that has drifted more than average from the reference loses advantage, one that has drifted
less gains it; the adjustments sum to zero over the step. `kl_source` names pi_src: `current_learner` is the policy
in training (detached), `sample` is pi_old. Departure from a KL term in the loss: no gradient flows through k.
"""

from __future__ import annotations

from torch import Tensor

from tandem.rl.config import LossConfig
from tandem.rl.losses.inputs import LossInputs


def token_kl(trained: LossInputs, old_logprobs: Tensor, config: LossConfig) -> Tensor | None:
    """Return k [N], detached; None if the config or the inputs have no penalty."""
    if config.kl_coef == 0 or trained.ref_logprobs is None:
        return None
    source = trained.policy_logprobs if config.kl_source == "current_learner" else old_logprobs
    return (source - trained.ref_logprobs).detach()


def kl_adjusted_advantages(advantages: Tensor, kl: Tensor, kl_mean: Tensor, config: LossConfig) -> Tensor:
    """Return A + kl_coef * (kbar - k) [N]."""
    return advantages + config.kl_coef * (kl_mean - kl)
