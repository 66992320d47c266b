"""The fast RMSNorm against those of the models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from tandem.rl.models.layers.rms_norm import _RmsNorm, use_fast_rms_norms

SIZE = 24


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    nn.init.normal_(module.weight)
    return module.requires_grad_(False)


@pytest.mark.parametrize("family", [Qwen3RMSNorm, GemmaRMSNorm])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_output_and_gradient_are_the_modules_own(family: type[nn.Module], scale: float) -> None:
    own = randomised(family(SIZE))
    fast = copy.deepcopy(own)
    assert use_fast_rms_norms(nn.Sequential(fast)) == 1
    hidden = (scale * torch.randn(2, 5, 3, SIZE)).transpose(1, 2).requires_grad_()
    grad = torch.randn(2, 3, 5, SIZE)
    results = [[out.detach(), *torch.autograd.grad(out, hidden, grad)] for out in (own(hidden), fast(hidden))]
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


def test_the_gradient_is_that_of_the_equation() -> None:
    hidden = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda hidden: _RmsNorm.apply(hidden, gain, 0.1), hidden)


@pytest.mark.parametrize(
    "module",
    [nn.LayerNorm(SIZE), Qwen3NextRMSNormGated(SIZE), Qwen3RMSNorm(SIZE).to(torch.bfloat16)],
    ids=["another norm", "with a gate", "bfloat16"],
)
def test_others_stay_as_they_are(module: nn.Module) -> None:
    assert use_fast_rms_norms(nn.Sequential(randomised(module))) == 0
