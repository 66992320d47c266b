"""The LoRA linear layer against its equation and against PEFT's."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tandem.rl.models.lora.linear import LEAST_ONEDNN_TOKENS, LoraLinear, SharedInput, frozen_product, share_inputs

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


def test_compiled_products_have_no_plain_call_of_onednn() -> None:
    """Inductor can't compile one."""
    called: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    left, weight = torch.randn(LEAST_ONEDNN_TOKENS, 8), torch.randn(4, 8)
    found = torch.compile(frozen_product, backend=backend, fullgraph=True)(left, weight)
    torch.testing.assert_close(found, left @ weight.t())
    assert called and not any("mkldnn" in name for name in called)


@pytest.mark.parametrize("num_tokens", [LEAST_ONEDNN_TOKENS - 1, LEAST_ONEDNN_TOKENS])
@pytest.mark.parametrize("bias", [False, True])
def test_products_with_the_frozen_weight_take_any_layout(num_tokens: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    offset = random(OUT) if bias else None
    for weight in (random(OUT, IN), random(IN, OUT).t()):
        heads = random(2, num_tokens, IN // 2).transpose(0, 1).flatten(1)
        for left in (
            heads,
            random(IN, num_tokens).t(),
            random(num_tokens, 2 * IN)[:, IN:],
            random(IN).expand(num_tokens, -1),
        ):
            exact = left.double() @ weight.t().double() + (0 if offset is None else offset.double())
            torch.testing.assert_close(frozen_product(left, weight, offset).double(), exact, rtol=1e-5, atol=1e-5)


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


# Layers with one input


class Attention(nn.Module):
    """Query, key and value projections of one input. A twin of it has PEFT's adapters, or layers that share nothing."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(IN, OUT // n).to(dtype) for n in (1, 2, 2))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)], dim=-1)


def twins(dtype: torch.dtype) -> tuple[Attention, nn.Module]:
    """Return ours, whose layers don't share yet, and PEFT's, with the same values."""
    torch.manual_seed(0)
    ours = Attention(dtype)
    names = ["q_proj", "k_proj", "v_proj"]
    theirs = inject_adapter_in_model(LoraConfig(r=R, lora_alpha=int(R * SCALE), target_modules=names), deepcopy(ours))
    for name in names:
        layer, peft = LoraLinear(getattr(ours, name), R, SCALE), getattr(theirs, name)
        setattr(ours, name, layer)
        for own, other in ((layer.lora_A, peft.lora_A), (layer.lora_B, peft.lora_B)):
            own.data = torch.randn(own.shape)
            other["default"].weight.data = own.data.clone()
    return ours, theirs


def adapter(model: nn.Module) -> tuple[Tensor, ...]:
    """Return the trained parameters, in the same order for both kinds."""
    return tuple(parameter for name, parameter in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_share_their_input_are_pefts(dtype: torch.dtype) -> None:
    ours, theirs = twins(dtype)
    SharedInput([ours.q_proj, ours.k_proj, ours.v_proj])
    for own, reference in zip(run(ours, adapter(ours), dtype), run(theirs, adapter(theirs), dtype), strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(own, reference, rtol=1e-6, atol=2e-5)
        else:
            assert own.dtype == reference.dtype
            assert torch.cosine_similarity(own.float().flatten(), reference.float().flatten(), dim=0) > 0.9999


def test_a_float32_base_shares_nothing_and_a_bfloat16_base_does() -> None:
    assert share_inputs(twins(torch.float32)[0]) == 0
    assert share_inputs(twins(torch.bfloat16)[0]) == 3


def test_layers_that_share_may_be_called_on_other_tensors_or_not_at_all() -> None:
    """In cross-attention keys and values come from another sequence. Nothing of an earlier call may be used then."""
    alone, _ = twins(torch.float32)
    shared = deepcopy(alone)
    SharedInput([shared.q_proj, shared.k_proj, shared.v_proj])
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(5, IN, generator=generator) for _ in range(2))

    def cross(model: Any) -> Sequence[Tensor]:
        with torch.no_grad():
            model.k_proj(x)  # leaves outputs that nobody takes
        return [model.q_proj(x), model.k_proj(y), model.v_proj(y), model.v_proj(x), model.q_proj(y), model.q_proj(y)]

    for model in (shared, alone):
        sum((number + 1) * out.sum() for number, out in enumerate(cross(model))).backward()
    for own, expected in zip(cross(shared), cross(alone), strict=True):
        torch.testing.assert_close(own, expected)
    for own, expected in zip(adapter(shared), adapter(alone), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)


class Operations(TorchDispatchMode):
    """Record the results of every operation that computes something."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view and func is not torch.ops.aten.detach.default:
            self.results.append(result)
        return result


def operations(model: nn.Module, tokens: int = 512) -> Operations:
    hidden = torch.randn(tokens, IN).bfloat16().requires_grad_()
    with Operations() as found:
        model(hidden).sum().backward()
    return found


def test_no_activation_becomes_float32() -> None:
    def widest(model: nn.Module) -> int:
        return max((t.numel() for t in operations(model).results if t.dtype == torch.float32), default=0)

    ours, theirs = twins(torch.bfloat16)
    share_inputs(ours)
    assert widest(ours) == 3 * R * IN  # the gradient of the joined A
    assert widest(theirs) == 512 * OUT
