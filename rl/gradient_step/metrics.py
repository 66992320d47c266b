"""The sums over a gradient step's trained tokens, which learners all-reduce, and the metrics that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum, auto

import torch
from torch import Tensor

from tandem.rl.losses import LossInputs, LossTerms, mean_over_tokens, probability_correlation, probability_moments


class StepSum(IntEnum):
    """Indices of the sums over a step's trained tokens, beside the gradient. The last six are probability moments."""

    TOKENS = 0
    SEQUENCES = auto()
    LOSS = auto()
    ENTROPY = auto()
    RATIO = auto()
    CLIPPED = auto()
    KL = auto()
    KL_TOKENS = auto()
    SAMPLED_DIFF = auto()
    SAMPLED_TOKENS = auto()
    UNKNOWN = auto()
    """Trained tokens whose logprob isn't finite."""
    OUT_OF_MEMORY = auto()
    """Learners whose memory didn't suffice."""
    MOMENTS = auto()

    @staticmethod
    def zeros(device: torch.device) -> Tensor:
        return torch.zeros(StepSum.MOMENTS + 6, dtype=torch.float64, device=device)


def sequence_sums(inputs: LossInputs, terms: LossTerms) -> Tensor:
    """Return the sums of one packed sequence, in the order of StepSum."""
    assert inputs.entropy is not None, "it is a metric of every step"
    sums = StepSum.zeros(inputs.entropy.device)
    sums[StepSum.TOKENS] = terms.num_tokens
    sums[StepSum.SEQUENCES] = 1
    sums[StepSum.LOSS] = terms.loss_sum.detach()
    sums[StepSum.ENTROPY] = (inputs.entropy * inputs.weights)[inputs.loss_mask].sum()
    sums[StepSum.RATIO] = terms.ratio_sum
    sums[StepSum.CLIPPED] = terms.num_clipped
    sums[StepSum.UNKNOWN] = (~inputs.policy_logprobs.detach()[inputs.loss_mask].isfinite()).sum()
    if terms.kl_sum is not None:
        sums[StepSum.KL] = terms.kl_sum
        sums[StepSum.KL_TOKENS] = terms.num_tokens
    sums[StepSum.MOMENTS :] = probability_moments(inputs)
    return sums


def step_metrics(sums: Sequence[float], grad_norm: float, learning_rate: float) -> dict[str, float]:
    """Return means over the step's trained tokens. loss/entropy is weighted like the loss."""
    tokens = sums[StepSum.TOKENS]
    metrics: dict[str, float] = {
        "loss/train": mean_over_tokens(sums[StepSum.LOSS], tokens),
        "loss/grad_norm": grad_norm,
        "loss/learning_rate": learning_rate,
        "data/step_trainer_tokens": tokens,
        "data/step_num_sequences": sums[StepSum.SEQUENCES],
    }
    if tokens > 0:
        metrics["loss/entropy"] = mean_over_tokens(sums[StepSum.ENTROPY], tokens)
        metrics["loss/ratio_mean"] = sums[StepSum.RATIO] / tokens
        metrics["loss/clip_fraction"] = sums[StepSum.CLIPPED] / tokens
    if sums[StepSum.KL_TOKENS] > 0:
        metrics["loss/kl_policy_ref"] = mean_over_tokens(sums[StepSum.KL], sums[StepSum.KL_TOKENS])
    correlation = probability_correlation(torch.tensor(sums[StepSum.MOMENTS :], dtype=torch.float64))
    if correlation is not None:
        metrics["loss/probs_corr"] = correlation
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
