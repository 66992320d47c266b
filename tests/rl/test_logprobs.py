"""Chunked logprobs compared with the plain log_softmax over the whole vocabulary."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tandem.rl.logprobs import PLAIN, LogitRule, target_logprobs, token_logprobs

NUM_TOKENS, HIDDEN, VOCABULARY = 10, 6, 17


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(NUM_TOKENS, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, weight, torch.randint(0, VOCABULARY, (NUM_TOKENS,), generator=generator)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 9, 10, 11, 1024])
def test_any_chunk_size_gives_the_values_and_gradients_of_the_full_softmax(chunk_size: int) -> None:
    hidden, weight, targets = problem()
    log_softmax = torch.log_softmax(hidden @ weight.t(), dim=-1)
    full = log_softmax.gather(1, targets[:, None]).squeeze(1)
    factors = torch.linspace(-1, 2, NUM_TOKENS, dtype=torch.float64)
    (expected_gradient,) = torch.autograd.grad((full * factors).sum(), hidden)

    logprobs, entropy = token_logprobs(hidden, weight, targets, chunk_size, with_entropy=True)
    (gradient,) = torch.autograd.grad((logprobs * factors).sum(), hidden)

    torch.testing.assert_close(logprobs, full, rtol=0, atol=1e-13)
    torch.testing.assert_close(entropy, -(log_softmax.exp() * log_softmax).sum(dim=-1), rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, 2.0), (0.25, None), (3.0, 1.5)])
def test_logits_with_a_bias_a_scale_and_a_cap(
    scale: float, cap: float | None, has_bias: bool, dtype: torch.dtype
) -> None:
    hidden, weight, targets = problem(dtype)
    bias = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(4)).to(dtype) if has_bias else None
    logits = scale * (hidden @ weight.t() + (0 if bias is None else bias))
    log_softmax = torch.log_softmax(logits if cap is None else cap * torch.tanh(logits / cap), dim=-1)
    full = log_softmax.gather(1, targets[:, None]).squeeze(1)
    factors = torch.linspace(-1, 2, NUM_TOKENS, dtype=dtype)
    (expected_gradient,) = torch.autograd.grad((full * factors).sum(), hidden)

    rule = LogitRule(bias, scale, cap)
    logprobs, entropy = token_logprobs(hidden, weight, targets, chunk_size=3, rule=rule)
    (gradient,) = torch.autograd.grad((logprobs * factors).sum(), hidden)

    atol = 1e-13 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(logprobs, full, rtol=0, atol=atol)
    torch.testing.assert_close(entropy, -(log_softmax.exp() * log_softmax).sum(dim=-1), rtol=0, atol=atol)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=atol)


def test_a_cap_by_hand() -> None:
    """Logits 2 tanh(1 / 2) and -2 tanh(1 / 2): the second is as likely as exp(-4 tanh(1 / 2)) times the first."""
    weight = torch.tensor([[1.0], [-1.0]])
    capped = token_logprobs(torch.ones(1, 1), weight, torch.tensor([1]), chunk_size=1, rule=LogitRule(cap=2.0))[0]
    assert capped.item() == pytest.approx(-math.log(1 + math.exp(4 * math.tanh(0.5))))


def test_by_hand() -> None:
    """Logits ln 1, ln 2, ln 5: probabilities 1/8, 2/8, 5/8."""
    hidden = torch.ones(1, 1, requires_grad=True)
    weight = torch.tensor([[1.0], [2.0], [5.0]]).log()
    logprobs, entropy = token_logprobs(hidden, weight, torch.tensor([1]), chunk_size=1)
    assert logprobs.exp().item() == pytest.approx(0.25)
    assert entropy.item() == pytest.approx(math.log(8) - 2 / 8 * math.log(2) - 5 / 8 * math.log(5))
    assert not entropy.requires_grad


def test_entropy_of_a_certain_prediction_is_zero() -> None:
    hidden = torch.tensor([[1.0]])
    weight = torch.tensor([[200.0], [0.0], [float("-inf")]])
    assert token_logprobs(hidden, weight, torch.tensor([0]), chunk_size=1)[1].item() == 0


def test_without_entropy_none_is_computed() -> None:
    hidden, weight, targets = problem()
    assert token_logprobs(hidden, weight, targets, chunk_size=4, with_entropy=False)[1].numel() == 0


def test_bfloat16_weights_give_float32_logits() -> None:
    hidden, weight, targets = problem(torch.bfloat16)
    logprobs, entropy = token_logprobs(hidden, weight, targets, chunk_size=4)
    assert logprobs.dtype == entropy.dtype == torch.float32
    exact = torch.log_softmax(hidden.double() @ weight.double().t(), dim=-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert gradient.dtype == torch.bfloat16


def test_no_tokens() -> None:
    hidden, weight, targets = problem()
    logprobs, entropy = token_logprobs(hidden[:0], weight, targets[:0], chunk_size=4)
    assert logprobs.shape == entropy.shape == (0,)
    assert torch.autograd.grad(logprobs.sum(), hidden)[0].abs().max() == 0


def test_chunk_size_must_be_positive() -> None:
    hidden, weight, targets = problem()
    with pytest.raises(ValueError, match="chunk_size is 0"):
        token_logprobs(hidden, weight, targets, chunk_size=0)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, tuple | list) else (result,):
            if isinstance(output, Tensor):
                self.elements = max(self.elements, output.numel())
        return result


def test_the_logits_of_all_tokens_never_exist_together() -> None:
    num_tokens, chunk_size = 64, 8
    hidden = torch.randn(num_tokens, 4, requires_grad=True)
    weight = torch.randn(101, 4)
    with LargestTensor() as largest:
        logprobs, _ = token_logprobs(hidden, weight, torch.arange(num_tokens), chunk_size)
        logprobs.sum().backward()
    assert largest.elements == chunk_size * 101


@pytest.mark.parametrize("chunk_size", [1, 3, 1024])
@pytest.mark.parametrize("rule", [PLAIN, LogitRule(scale=0.25), LogitRule(torch.arange(17.0).double() / 9, 3.0, 1.5)])
def test_several_targets_after_one_hidden_state(chunk_size: int, rule: LogitRule) -> None:
    """One hidden state has no target, some have one, and pairs repeat. Nothing counts at some hidden states."""
    hidden, weight, _ = problem()
    rows = torch.tensor([4, 4, 4, 2, 9, 9, 0, 5, 5, 7, 7, 1, 3, 8])
    targets = torch.tensor([3, 3, 16, 0, 1, 2, 5, 6, 7, 8, 8, 9, 10, 11])
    counted = torch.tensor([1, 1, 1, 1, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1]).bool()
    factors = torch.linspace(-1, 2, len(rows), dtype=torch.float64) * counted
    logits = rule.scale * (hidden @ weight.t() + (0 if rule.bias is None else rule.bias))
    log_softmax = torch.log_softmax(logits if rule.cap is None else rule.cap * torch.tanh(logits / rule.cap), dim=-1)
    full = log_softmax[rows, targets]
    (expected_gradient,) = torch.autograd.grad((full * factors).sum(), hidden)

    logprobs = target_logprobs(hidden, weight, rows, targets, counted, chunk_size, rule)
    (gradient,) = torch.autograd.grad((logprobs * factors).sum(), hidden)

    torch.testing.assert_close(logprobs, full, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-13)
    with torch.no_grad():
        again = target_logprobs(hidden, weight, rows, targets, torch.zeros_like(counted), chunk_size, rule)
    torch.testing.assert_close(again, full, rtol=0, atol=1e-13)


def test_hidden_states_that_do_not_count_keep_nothing_for_a_backward_pass() -> None:
    hidden, weight, targets = problem()
    rows = torch.arange(NUM_TOKENS)
    counted = rows == 3
    logprobs = target_logprobs(hidden, weight, rows, targets, counted, 4)
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == [3]
