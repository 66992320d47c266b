"""From hidden states to logprobs and entropy in chunks of tokens, in float32, without [T, V] in memory.

The whole logits of a packed sequence would be T x V numbers (32k tokens x 150k words: 20 GB in float32), three times
over with softmax and gradient. Here only `chunk_size` rows exist at a time. The forward pass keeps of each token its
logprob's derivative with respect to the hidden state, [H], so the backward pass multiplies by no logits again.

`target_logprobs` is for several tokens after one hidden state, whose derivative depends on the loss: there the backward
pass makes the logits of these hidden states again.

Some families add a bias to the logits, scale them or cap them softly. `LogitRule` says how.

Shapes: T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitRule:
    """How logits z follow from x = hidden @ W^T + bias: z = scale x, or cap tanh(scale x / cap)."""

    bias: Tensor | None = None
    """[V]"""
    scale: float = 1.0
    cap: float | None = None

    def apply(self, products: Tensor) -> Tensor:
        """Return the logits [C, V] for products hidden @ W^T [C, V], which may be overwritten."""
        logits = products if self.bias is None else products.add_(self.bias)
        if self.scale != 1:
            logits = logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return dz/dx [C, V] except for the constant `scale`; None where it is 1."""
        return None if self.cap is None else 1 - (logits / self.cap) ** 2


PLAIN = LogitRule()


def token_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    chunk_size: int,
    with_entropy: bool = True,
    rule: LogitRule = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Return the logprob of `targets` [T] under the softmax of the logits, and that distribution's entropy.

    The logits are `rule` of hidden @ lm_head_weight^T.
    hidden [T, H] may require a gradient; lm_head_weight [V, H] is frozen. `chunk_size` >= 1 affects only memory; the
    last chunk may be shorter. Returns float32 (float64 for float64 inputs) logprobs [T], which carry
    the gradient, and entropy [T] in nats, which doesn't; without `with_entropy` the entropy is empty [0].
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1 token.")
    assert not lm_head_weight.requires_grad, "the output embedding is frozen: no gradient is computed for it"
    result: tuple[Tensor, Tensor] = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]  # torch has no types here
        hidden, lm_head_weight, targets, chunk_size, with_entropy, rule
    )
    return result


class _ChunkedLogprobs(torch.autograd.Function):
    """With z = z(x), x = h W^T + b and y the target: log p = z_y - logsumexp(z), and
    d log p / dh = ((onehot(y) - softmax(z)) dz/dx) W.

    The derivative doesn't depend on the loss, so the forward pass computes it, while it has a chunk's probabilities.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk_size: int,
        with_entropy: bool,
        rule: LogitRule,
    ) -> tuple[Tensor, Tensor]:
        head = _FloatHead(weight)
        num_tokens = hidden.shape[0]
        with_gradient = ctx.needs_input_grad[0]
        logprobs = torch.empty(num_tokens, dtype=head.dtype, device=hidden.device)
        entropy = torch.empty(num_tokens if with_entropy else 0, dtype=head.dtype, device=hidden.device)
        derivative = torch.empty(hidden.shape if with_gradient else 0, dtype=head.dtype, device=hidden.device)
        for chunk in _chunks(num_tokens, chunk_size):
            logits = rule.apply(head.logits(hidden[chunk]))
            slope = rule.slope(logits) if with_gradient else None
            log_softmax = torch.log_softmax(logits, dim=-1)
            logprobs[chunk] = log_softmax.gather(1, targets[chunk, None]).squeeze(1)
            if not with_entropy and not with_gradient:
                continue
            probs = log_softmax.exp()
            if with_entropy:
                # A token that cannot occur has logprob -inf and adds 0 to the entropy, not 0 * -inf.
                entropy[chunk] = -torch.linalg.vecdot(probs, log_softmax.clamp_min_(torch.finfo(head.dtype).min))
            if with_gradient:
                probs[torch.arange(len(probs), device=hidden.device), targets[chunk]] -= 1
                if slope is not None:
                    probs.mul_(slope)
                derivative[chunk] = head.embedding(probs).mul_(-rule.scale)
        ctx.save_for_backward(derivative)
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, _grad_entropy: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (derivative,) = ctx.saved_tensors
        return (grad_logprobs[:, None] * derivative).to(ctx.dtype), None, None, None, None, None


def target_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    rows: Tensor,
    targets: Tensor,
    counted: Tensor,
    chunk_size: int,
    rule: LogitRule = PLAIN,
) -> Tensor:
    """Return the logprobs [M] of tokens `targets` [M] after the hidden states `rows` [M], indices into `hidden` [T, H].

    Equal pairs of hidden state and token are computed once. The result carries the gradient only of those that are
    `counted` [M], bool; for hidden states without any, nothing is kept for a backward pass.
    """
    vocabulary = lm_head_weight.shape[0]
    keys, place = torch.unique(rows * vocabulary + targets, return_inverse=True)
    pairs = _Pairs(keys // vocabulary, keys % vocabulary)
    own = torch.bincount(pairs.rows, minlength=len(hidden))
    is_counted = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
    is_counted[rows[counted]] = True
    values = torch.zeros(len(keys), dtype=_FloatHead(lm_head_weight).dtype, device=hidden.device)
    for of_kind, source in ((~is_counted & (own > 0), hidden.detach()), (is_counted & (own > 1), hidden)):
        if of_kind.any():
            index, part = pairs.at(of_kind)
            found: Tensor = _SeveralLogprobs.apply(  # type: ignore[no-untyped-call]
                source[of_kind], lm_head_weight, part, chunk_size, rule
            )
            values = values.index_copy(0, index, found)
    if (single := is_counted & (own == 1)).any():
        index, part = pairs.at(single)
        found, _ = token_logprobs(hidden[single], lm_head_weight, part.targets, chunk_size, False, rule)
        values = values.index_copy(0, index, found)
    return values[place]  # on CUDA, the gradient of equal indices is summed in a fixed order


@dataclass(frozen=True)
class _Pairs:
    """Hidden states and tokens, sorted by hidden state and different from each other."""

    rows: Tensor
    targets: Tensor

    def at(self, of_kind: Tensor) -> tuple[Tensor, _Pairs]:
        """Return the indices of the pairs whose hidden state is True in `of_kind` [T], and these pairs, with indices
        into those hidden states alone."""
        index = of_kind[self.rows].nonzero().squeeze(1)
        return index, _Pairs((of_kind.cumsum(0) - 1)[self.rows[index]], self.targets[index])

    def chunks(self, num_rows: int, chunk_size: int) -> list[tuple[slice, slice, Tensor, Tensor]]:
        """Return for each chunk of hidden states: itself, its pairs, and their hidden state in the chunk and token."""
        chunks = _chunks(num_rows, chunk_size)
        bounds = torch.tensor([0, *(chunk.stop for chunk in chunks)], device=self.rows.device)
        starts = torch.searchsorted(self.rows, bounds).tolist()
        pairs = [slice(start, stop) for start, stop in pairwise(starts)]
        return [
            (chunk, own, self.rows[own] - chunk.start, self.targets[own])
            for chunk, own in zip(chunks, pairs, strict=True)
        ]


class _SeveralLogprobs(torch.autograd.Function):
    """With the gradient g_k of the logprob of target y_k: d / dx = (sum_k g_k (onehot(y_k) - softmax(z))) dz/dx."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, pairs: _Pairs, chunk_size: int, rule: LogitRule) -> Tensor:
        head = _FloatHead(weight)
        logprobs = torch.empty(len(pairs.rows), dtype=head.dtype, device=hidden.device)
        for chunk, own, rows, targets in pairs.chunks(len(hidden), chunk_size):
            logits = rule.apply(head.logits(hidden[chunk]))
            logprobs[own] = logits[rows, targets] - torch.logsumexp(logits, dim=-1)[rows]
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(hidden, weight)
            ctx.pairs, ctx.chunk_size, ctx.rule = pairs, chunk_size, rule
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor) -> tuple[Tensor, None, None, None, None]:
        hidden, weight = ctx.saved_tensors
        head, rule = _FloatHead(weight), ctx.rule
        gradient = torch.empty(hidden.shape, dtype=head.dtype, device=hidden.device)
        for chunk, own, rows, targets in ctx.pairs.chunks(len(hidden), ctx.chunk_size):
            logits = rule.apply(head.logits(hidden[chunk]))
            slope = rule.slope(logits)
            total = logits.new_zeros(len(logits)).index_put_((rows,), grad_logprobs[own], accumulate=True)
            slopes = torch.softmax(logits, dim=-1).mul_(-total[:, None])
            slopes[rows, targets] += grad_logprobs[own]
            if slope is not None:
                slopes.mul_(slope)
            gradient[chunk] = head.embedding(slopes).mul_(rule.scale)
        return gradient.to(hidden.dtype), None, None, None, None


class _FloatHead:
    """The output embedding [V, H], multiplied so that logits come out in float32 whatever its own dtype is.

    Logits rounded to bfloat16 would be off by up to 0.06 at a logit of 20, which is noise in every importance ratio.
    On a GPU the matmul takes bfloat16 in and accumulates and returns float32; elsewhere the weight is converted once.
    """

    def __init__(self, weight: Tensor) -> None:
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        self._mixed = weight.is_cuda and weight.dtype != self.dtype
        self._weight = weight if self._mixed else weight.to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[C, H] to [C, V]."""
        return self._matmul(hidden, self._weight.t())

    def embedding(self, weights: Tensor) -> Tensor:
        """Return sums of embeddings, weighted by token: [C, V] to [C, H]."""
        return self._matmul(weights, self._weight)

    def _matmul(self, left: Tensor, right: Tensor) -> Tensor:
        if self._mixed:
            return torch.mm(left.to(right.dtype), right, out_dtype=self.dtype)
        return left.to(self.dtype) @ right


def _chunks(num_tokens: int, chunk_size: int) -> list[slice]:
    return [slice(start, start + chunk_size) for start in range(0, num_tokens, chunk_size)]
