"""Inputs of a policy loss, and the one place that aligns tokens with predictions.

A causal model's output at position t is its prediction of token t + 1. Everything that describes a token
(`PackedSequence`, token-aligned) is therefore shifted left by one here, so that position t of `LossInputs`
describes the prediction made at t and the token t + 1 that it scores (prediction-aligned).

Tokens that several sequences train (`Repeats`) follow, once for each further sequence: their logprobs are gathered from
the prediction, so that its gradient is the sum of all.

Shapes: T positions of a packed sequence and its E repeats, N trained ones among these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.rl.packing import PackedSequence

# Engines report about -9999 for a token whose logprob they did not compute. No sampled token is that unlikely, and such
# a number would make an importance ratio infinite.
UNKNOWN_BELOW = -1000.0


def shift_left(tokenwise: Tensor, pad: float | bool) -> Tensor:
    """Token-aligned [T] to prediction-aligned [T]: entry t becomes that of token t + 1; the last is `pad`."""
    return torch.cat([tokenwise[1:], tokenwise.new_full((1,), pad)])


def shift_right(predictionwise: Tensor, pad: float) -> Tensor:
    """Prediction-aligned [T] to token-aligned [T]: the inverse of shift_left; the first entry is `pad`."""
    return torch.cat([predictionwise.new_full((1,), pad), predictionwise[:-1]])


@dataclass(frozen=True)
class LossInputs:
    """One packed sequence as a loss sees it. All tensors are [T + E], prediction-aligned and on one device.

    Values outside `loss_mask` may be anything: NaN there reaches neither a loss nor a gradient.
    """

    policy_logprobs: Tensor
    """log pi_theta of the scored token under the policy in training; carries the gradient."""
    sampling_logprobs: Tensor
    """Its logprob as the engine sampled it; NaN (or anything at or below -1000) where unknown."""
    advantages: Tensor
    weights: Tensor
    """The token's weight in the sum over tokens; 1 on average over a job."""
    loss_mask: Tensor
    """bool: the scored token is trained."""
    completion_ids: Tensor
    """int64: which completion the scored token belongs to (all turns of one sequence share an id)."""
    old_logprobs: Tensor | None = None
    """Logprobs recomputed under the policy at the start of the job; None: the sampling logprobs are used instead."""
    ref_logprobs: Tensor | None = None
    """Logprobs under the reference policy of the KL penalty; None: no penalty."""
    is_fresh: Tensor | None = None
    """bool: the scored token was sampled by the policy at the start of the step."""
    group_ids: Tensor | None = None
    """int64: the group of the scored token's segment; -1 for a token that a further sequence trains."""
    entropy: Tensor | None = None
    """Of the prediction, in nats; a metric, not part of any loss."""

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            assert values is None or values.shape == self.policy_logprobs.shape, (name, values.shape)
        assert self.policy_logprobs.ndim == 1 and self.policy_logprobs.is_floating_point()
        assert self.loss_mask.dtype == torch.bool and self.completion_ids.dtype == torch.int64

    @classmethod
    def from_packed(cls, packed: PackedSequence, policy_logprobs: Tensor, entropy: Tensor | None = None) -> LossInputs:
        """Shift `packed` to match logprobs and entropy [T] (prediction-aligned, as `Policy.logprobs` returns them)."""
        repeats = packed.repeats

        def per_sequence(tokenwise: Tensor, repeated: Tensor, pad: float | bool) -> Tensor:
            return torch.cat([shift_left(tokenwise, pad), repeated])

        def per_token(tokenwise: Tensor | None) -> Tensor | None:
            return None if tokenwise is None else per_sequence(tokenwise, tokenwise[repeats.indices], float("nan"))

        def per_prediction(values: Tensor) -> Tensor:
            return torch.cat([values, values[repeats.indices - 1]])

        is_fresh, group_ids = packed.is_fresh, packed.group_ids
        no_groups = torch.full_like(repeats.indices, -1)
        return cls(
            policy_logprobs=per_prediction(policy_logprobs),
            sampling_logprobs=per_sequence(packed.sampling_logprobs, repeats.sampling_logprobs, float("nan")),
            advantages=per_sequence(packed.advantages, repeats.advantages, 0.0),
            weights=per_sequence(packed.weights, repeats.weights, 0.0),
            loss_mask=per_sequence(packed.loss_mask, torch.ones_like(repeats.is_fresh), False),
            completion_ids=per_sequence(packed.segment_ids, repeats.completion_ids, -1),
            old_logprobs=per_token(packed.old_logprobs),
            ref_logprobs=per_token(packed.ref_logprobs),
            is_fresh=None if is_fresh is None else per_sequence(is_fresh, repeats.is_fresh, False),
            group_ids=None if group_ids is None else per_sequence(group_ids.long(), no_groups, -1),
            entropy=None if entropy is None else per_prediction(entropy),
        )

    def trained(self) -> LossInputs:
        """Return the N trained positions only, so that no other value can enter any arithmetic."""
        columns = {name: values for name, values in vars(self).items() if values is not None}
        return LossInputs(**{name: values[self.loss_mask] for name, values in columns.items()})

    def behaviour_logprobs(self) -> Tensor:
        """Return log pi_old: recomputed logprobs if there are any, else sampling logprobs; NaN where unknown."""
        return known_or_nan(self.sampling_logprobs if self.old_logprobs is None else self.old_logprobs)


def known_or_nan(logprobs: Tensor) -> Tensor:
    """Replace an engine's placeholder for 'not computed' by NaN."""
    return torch.where(logprobs > UNKNOWN_BELOW, logprobs, float("nan"))
