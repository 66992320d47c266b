"""Direct preference optimization (Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is
Secretly a Reward Model", arXiv 2305.18290, equation 7):

    L = -E [ log sigma(beta h) ],    h = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)

over pairs of a preferred answer y_w and another one y_l to the same prompt x. In the code, h is a sum over the trained
tokens t of both answers, with the sign s_t = +1 in y_w and -1 in y_l (in `advantages`):

    h = sum of s_t (log pi_theta(t) - log pi_ref(t))
    dL_pair / d log pi_theta(t) = -beta sigma(-beta h) s_t

The answers of a pair may lie in several rows, and on several learners. So the sums of all pairs of the step are
computed first (`pair_sums`, which add up over rows and learners), and each token's gradient then has its pair's factor
as a constant. Tokens that both answers begin with cancel out; they needn't be trained.

The learner divides by the number of trained tokens T of the step. The loss is a mean over its P pairs, whatever their
lengths, so token losses are scaled by T / P; a pair's loss counts in equal parts at its tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tandem.rl.config import Dpo
from tandem.rl.losses.inputs import LossInputs
from tandem.rl.losses.terms import LossTerms

PREFERRED, REJECTED, TOKENS = range(3)
"""Rows of pair sums."""


def pair_sums(inputs: LossInputs, objective: Dpo) -> Tensor:
    """Return [3, P], float64 and detached: what the tokens of one packed sequence add to the sums of the P pairs.

    These are the sum of log pi_theta - log pi_ref over the preferred answer, the same over the other answer, and the
    number of trained tokens of both.
    """
    trained = inputs.trained()
    log_ratio = (trained.policy_logprobs - _reference(trained)).detach().double()
    sums = log_ratio.new_zeros(3, objective.num_pairs)
    pairs, is_preferred = _pairs(trained, objective), trained.advantages > 0
    sums[PREFERRED].index_add_(0, pairs, torch.where(is_preferred, log_ratio, 0.0))
    sums[REJECTED].index_add_(0, pairs, torch.where(is_preferred, 0.0, log_ratio))
    sums[TOKENS].index_add_(0, pairs, torch.ones_like(log_ratio))
    return sums


def dpo(inputs: LossInputs, objective: Dpo, sums: Tensor) -> LossTerms:
    """Return the summed loss of one packed sequence, differentiable in `inputs.policy_logprobs`.

    `sums` [3, P]: `pair_sums` of the whole gradient step.
    """
    trained = inputs.trained()
    pairs = _pairs(trained, objective)
    scaled = objective.beta * (sums[PREFERRED] - sums[REJECTED])
    value = -logsigmoid(scaled) / sums[TOKENS]
    factor = -objective.beta * torch.sigmoid(-scaled)
    signs = torch.where(trained.advantages > 0, 1.0, -1.0)
    change = trained.policy_logprobs - trained.policy_logprobs.detach()  # 0, with the gradient of log pi_theta
    losses = factor[pairs].float() * signs * change + value[pairs].float()
    scale = sums[TOKENS].sum() / objective.num_pairs
    none = torch.zeros((), device=losses.device)
    return LossTerms(
        loss_sum=losses.sum() * scale.float(),
        num_tokens=losses.numel(),
        ratio_sum=none + losses.numel(),
        num_clipped=none,
        kl_sum=None,
    )


def pair_metrics(sums: Tensor, objective: Dpo) -> dict[str, float]:
    """Return means over the pairs of a step: the implicit rewards beta log pi / pi_ref of both answers, their
    difference, and the share of pairs whose preferred answer has the higher one."""
    preferred, rejected = (objective.beta * sums[PREFERRED]), (objective.beta * sums[REJECTED])
    return {
        "dpo/reward_chosen": float(preferred.mean()),
        "dpo/reward_rejected": float(rejected.mean()),
        "dpo/reward_margin": float((preferred - rejected).mean()),
        "dpo/accuracy": float((preferred > rejected).double().mean()),
    }


def _reference(trained: LossInputs) -> Tensor:
    assert trained.ref_logprobs is not None, "callers score the reference first"
    return trained.ref_logprobs


def _pairs(trained: LossInputs, objective: Dpo) -> Tensor:
    """Return the index in the step [N] of each trained token's pair."""
    assert trained.group_ids is not None, "packed rows name the pair of each token as its group"
    return trained.group_ids - objective.first_pair
