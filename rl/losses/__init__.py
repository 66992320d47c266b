"""Policy losses: pure functions over prediction-aligned tensors.

They return sums; the learner divides by the token count of the whole gradient step, so that splitting a step over
sequences or learners changes nothing.
"""

from tandem.rl.losses.agreement import fresh_differences, probability_correlation, probability_moments
from tandem.rl.losses.dpo import pair_metrics, pair_sums
from tandem.rl.losses.inputs import LossInputs, shift_left, shift_right
from tandem.rl.losses.objective import kl_sum, loss_terms, mean_over_tokens, policy_loss
from tandem.rl.losses.terms import LossTerms

__all__ = [
    "LossInputs",
    "LossTerms",
    "fresh_differences",
    "kl_sum",
    "loss_terms",
    "mean_over_tokens",
    "pair_metrics",
    "pair_sums",
    "policy_loss",
    "probability_correlation",
    "probability_moments",
    "shift_left",
    "shift_right",
]
