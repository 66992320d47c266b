"""The LoRA linear layer against its equation and against PEFT's."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from tandem.rl.models.lora_linear import LoraLinear

IN, OUT, R, SCALE = 24, 40, 4, 0.5


def layers(dtype: torch.dtype, bias: bool) -> tuple[LoraLinear, nn.Module, tuple[nn.Parameter, nn.Parameter]]:
    """Return our layer, PEFT's and PEFT's parameters, all with the same values."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"linear": nn.Linear(IN, OUT, bias=bias).to(dtype)})
    ours = LoraLinear(nn.Linear(IN, OUT, bias=bias).to(dtype), R, SCALE)
    ours.base.load_state_dict(model["linear"].state_dict())
    config = LoraConfig(r=R, lora_alpha=int(R * SCALE), target_modules=["linear"])
    theirs = inject_adapter_in_model(config, model)["linear"]
    down, up = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    down.data, up.data = torch.randn(R, IN), torch.randn(OUT, R)
    ours.lora_A.data, ours.lora_B.data = down.data.clone(), up.data.clone()
    return ours, theirs, (down, up)


def run(layer: nn.Module, parameters: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Return output, gradient of the input, and gradients of the parameters."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 7, IN, generator=generator).to(dtype).requires_grad_()
    out = layer(hidden)
    grad = torch.randn(out.shape, generator=generator).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, (hidden, *parameters), grad)]


@pytest.mark.parametrize("bias", [False, True])
def test_float32_is_pefts(bias: bool) -> None:
    ours, theirs, parameters = layers(torch.float32, bias)
    for own, reference in zip(
        run(ours, (ours.lora_A, ours.lora_B), torch.float32), run(theirs, parameters, torch.float32), strict=True
    ):
        torch.testing.assert_close(own, reference, rtol=1e-6, atol=1e-5)


def test_bfloat16_keeps_the_adapter_in_float32() -> None:
    ours, theirs, parameters = layers(torch.bfloat16, bias=True)
    found = run(ours, (ours.lora_A, ours.lora_B), torch.bfloat16)
    expected = run(theirs, parameters, torch.bfloat16)
    assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for own, reference in zip(found, expected, strict=True):
        assert torch.cosine_similarity(own.float().flatten(), reference.float().flatten(), dim=0) > 0.9999


def test_gradients_are_those_of_the_equation() -> None:
    ours = LoraLinear(nn.Linear(5, 3).double(), 2, 1.5)
    down, up = torch.randn(2, 5).double().requires_grad_(), torch.randn(3, 2).double().requires_grad_()
    hidden = torch.randn(4, 5).double().requires_grad_()

    def apply(hidden: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return torch.func.functional_call(ours, {"lora_A": down, "lora_B": up}, (hidden,))

    expected = hidden @ ours.base.weight.t() + ours.base.bias + 1.5 * hidden @ down.t() @ up.t()
    torch.testing.assert_close(apply(hidden, down, up), expected)
    assert torch.autograd.gradcheck(apply, (hidden, down, up))


def test_the_frozen_layer_has_no_gradient() -> None:
    ours = LoraLinear(nn.Linear(IN, OUT), R, SCALE)
    ours(torch.randn(3, IN)).sum().backward()
    assert ours.base.weight.grad is None
    assert {name for name, p in ours.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
