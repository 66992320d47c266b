"""Losses of datums: sums over their positions, in the client's numbers.

A datum's position i predicts the token `target_tokens[i]`. In every formula

    l_i = log pi_theta(target_tokens[i])    the policy's logprob, with the gradient
    q_i = logprobs[i]                       its logprob when it was sampled
    A_i = advantages[i]
    r_i = exp(l_i - q_i)                    the importance ratio

Nothing is averaged, normalised or clamped beyond the formula, so that a loss of two datums is the sum of theirs, and
the client divides by the count that it wants. A position whose weight or advantage is 0 adds nothing to loss and
gradient, whatever its other numbers are.

Shapes: N positions of any number of datums. A position with K targets counts as K positions of one target each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

DEFAULT_CLIP = (0.8, 1.2)
DEFAULT_CISPO_CAP = (0.0, 4.0)
_THRESHOLDS = ("clip_low_threshold", "clip_high_threshold")
_POLICY_GRADIENT = ("target_tokens", "logprobs", "advantages")


@dataclass(frozen=True)
class Columns:
    """Inputs of a loss, of all positions one after the other."""

    values: Mapping[str, Tensor]
    """float32 [N], by the names of `loss_fn_inputs`. NaN in an optional one of a datum that leaves it out."""
    datum_ids: Tensor
    """int64 [N]. The datum that a position belongs to; from 0, in ascending order."""

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def optional(self, name: str, default: float) -> Tensor | float:
        """Return values that datums may leave out."""
        if name not in self.values:
            return default
        return torch.where(self.values[name].isnan(), default, self.values[name])


@dataclass(frozen=True)
class LossSum:
    """Sums over the positions of some datums. They add up over datums."""

    loss: Tensor
    """Scalar, differentiable in the policy's logprobs."""
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars without gradient, by the names of metrics."""


class Loss(Protocol):
    def __call__(self, policy_logprobs: Tensor, inputs: Columns, options: Mapping[str, float]) -> LossSum:
        """Return the loss of positions. `policy_logprobs`: float32 [N], with the gradient."""


@dataclass(frozen=True)
class LossKind:
    """A loss with the names that it reads."""

    compute: Loss
    mask: str
    """Of its inputs, the one that is 0 where a position adds nothing."""
    required: tuple[str, ...]
    """Of `loss_fn_inputs`."""
    optional: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Of `loss_fn_config`."""
    required_options: tuple[str, ...] = ()
    takes_many_targets: bool = False
    """Whether `target_tokens` may be [N, K]."""

    def counted(self, inputs: Columns) -> Tensor:
        """Return bool [N]: True where a position may add something to loss and gradient."""
        if self.mask in inputs.values:
            return inputs[self.mask] != 0
        return torch.ones_like(inputs.datum_ids, dtype=torch.bool)


def cross_entropy(policy_logprobs: Tensor, inputs: Columns, options: Mapping[str, float]) -> LossSum:
    """Return -sum w l, over K targets of each position where there are several (distillation of the top K).

    A datum without weights has a weight of 1 at all its positions.
    """
    weights = torch.as_tensor(inputs.optional("weights", 1.0)).expand_as(policy_logprobs)
    return LossSum(-_masked_product(weights, policy_logprobs).sum(), {"weight": weights.sum(dtype=torch.float64)})


def importance_sampling(policy_logprobs: Tensor, inputs: Columns, options: Mapping[str, float]) -> LossSum:
    """Return -sum r A. The gradient flows through the ratio."""
    counted = _Counted(policy_logprobs, inputs)
    return counted.result(-(counted.ratio * counted.advantages).sum())


def ppo(policy_logprobs: Tensor, inputs: Columns, options: Mapping[str, float]) -> LossSum:
    """Return -sum min(r A, clip(r, low, high) A) (Schulman et al. 2017, eq. 7, arXiv:1707.06347), per token."""
    counted = _Counted(policy_logprobs, inputs)
    low, high = counted.thresholds(options, DEFAULT_CLIP)
    return counted.result(_clipped(counted.ratio, low, high, counted.advantages), low, high)


def cispo(policy_logprobs: Tensor, inputs: Columns, options: Mapping[str, float]) -> LossSum:
    """Return -sum sg[clip(r, low, high)] l A (MiniMax-M1, eq. 4 and 5, arXiv:2506.13585): the ratio is a weight."""
    counted = _Counted(policy_logprobs, inputs)
    low, high = counted.thresholds(options, DEFAULT_CISPO_CAP)
    ratio = _clip(counted.ratio.detach(), low, high)
    return counted.result(-(ratio * counted.logprobs * counted.advantages).sum(), low, high)


def dro(policy_logprobs: Tensor, inputs: Columns, options: Mapping[str, float]) -> LossSum:
    """Return -sum (l A - beta/2 (l - q)^2), after direct reward optimisation (Richemond et al. 2024, arXiv:2405.19107).

    Departures: the loss is per token, and the advantage is the client's own in place of reward minus learned value.
    Positions with advantage 0 are masked, like those of the other losses, although the quadratic term knows no
    advantage: clients mark prompts in that way.
    """
    counted = _Counted(policy_logprobs, inputs)
    penalty = 0.5 * options["beta"] * (counted.logprobs - counted.sampling_logprobs) ** 2
    return counted.result(-(counted.logprobs * counted.advantages - penalty).sum())


def gspo(policy_logprobs: Tensor, inputs: Columns, options: Mapping[str, float]) -> LossSum:
    """Return PPO's loss of sequence ratios (GSPO-token: Zheng et al. 2025, section 4.3, arXiv:2507.18071):

    s_i = exp(mean over the datum's mask of (sg[l] - q)  +  l_i - sg[l_i])
    """
    counted = _Counted(policy_logprobs, inputs)
    in_mask = inputs["sequence_ratio_mask"] != 0
    log_ratio = torch.where(in_mask, policy_logprobs.detach() - inputs["logprobs"], 0.0)
    lengths = torch.bincount(inputs.datum_ids)
    # On CUDA, unlike index_add, this sums in a fixed order.
    sums = torch.segment_reduce(log_ratio, "sum", lengths=lengths)
    counts = torch.segment_reduce(in_mask.to(log_ratio.dtype), "sum", lengths=lengths)
    mean = (sums / counts.clamp(min=1))[inputs.datum_ids][counted.mask]
    ratio = torch.exp(mean + counted.logprobs - counted.logprobs.detach())
    low, high = counted.thresholds(options, DEFAULT_CLIP)
    return counted.result(_clipped(ratio, low, high, counted.advantages), low, high, ratio)


class _Counted:
    """The positions whose advantage isn't 0, so that no other number enters any arithmetic (NaN * 0 is NaN)."""

    def __init__(self, policy_logprobs: Tensor, inputs: Columns) -> None:
        self._inputs = inputs
        self.mask = inputs["advantages"] != 0
        self.logprobs = policy_logprobs[self.mask]
        self.sampling_logprobs = inputs["logprobs"][self.mask]
        self.advantages = inputs["advantages"][self.mask]
        self.ratio = torch.exp(self.logprobs - self.sampling_logprobs)

    def thresholds(
        self, options: Mapping[str, float], default: tuple[float, float]
    ) -> tuple[Tensor | float, Tensor | float]:
        """Return the lower and the upper clip threshold: the datum's own per position, else those of the call."""
        low, high = (
            self._inputs.optional(name, options.get(name, own)) for name, own in zip(_THRESHOLDS, default, strict=True)
        )
        return self._of_counted(low), self._of_counted(high)

    def _of_counted(self, threshold: Tensor | float) -> Tensor | float:
        return threshold[self.mask] if isinstance(threshold, Tensor) else threshold

    def result(
        self,
        loss: Tensor,
        low: Tensor | float = 0.0,
        high: Tensor | float = float("inf"),
        ratio: Tensor | None = None,
    ) -> LossSum:
        ratio = (self.ratio if ratio is None else ratio).detach()
        clipped = (ratio < low) | (ratio > high)
        sums = {"tokens": self.mask.sum(), "ratio": ratio.sum(), "clipped": clipped.sum()}
        return LossSum(loss, {name: value.to(torch.float64) for name, value in sums.items()})


def _masked_product(weights: Tensor, logprobs: Tensor) -> Tensor:
    """Return w l, 0 where w is 0, even if l is -inf there."""
    return torch.where(weights == 0, 0.0, weights * torch.where(weights == 0, 0.0, logprobs))


def _clip(ratio: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    lowest, highest = (torch.as_tensor(bound, dtype=ratio.dtype, device=ratio.device) for bound in (low, high))
    return torch.minimum(torch.maximum(ratio, lowest), highest)


def _clipped(ratio: Tensor, low: Tensor | float, high: Tensor | float, advantages: Tensor) -> Tensor:
    return -torch.minimum(ratio * advantages, _clip(ratio, low, high) * advantages).sum()


LOSSES: Mapping[str, LossKind] = {
    "cross_entropy": LossKind(cross_entropy, "weights", ("target_tokens",), ("weights",), takes_many_targets=True),
    "importance_sampling": LossKind(importance_sampling, "advantages", _POLICY_GRADIENT),
    "ppo": LossKind(ppo, "advantages", _POLICY_GRADIENT, _THRESHOLDS, _THRESHOLDS),
    "cispo": LossKind(cispo, "advantages", _POLICY_GRADIENT, _THRESHOLDS, _THRESHOLDS),
    "dro": LossKind(dro, "advantages", _POLICY_GRADIENT, options=("beta",), required_options=("beta",)),
    "gspo": LossKind(gspo, "advantages", (*_POLICY_GRADIENT, "sequence_ratio_mask"), _THRESHOLDS, _THRESHOLDS),
}
