"""LoRA on the fused experts of a mixture, against merged weights and PEFT, and what of a mixture is adapted at all."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from model_families import EXPERTS, MIXTURES, save
from peft import PeftModel
from safetensors.torch import save_file
from small_models import randomise_adapter
from torch import nn
from transformers import AutoModelForCausalLM
from trees import branching_group

from tandem.rl.config import LossConfig
from tandem.rl.learner import Learner
from tandem.rl.models.lora.experts import LoraExperts, is_fused_experts
from tandem.rl.packing import pack
from tandem.rl.policy import Policy, PolicyError
from tandem.rl.settings import LoraSettings


def fused_experts(model: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if is_fused_experts(module))


@pytest.mark.parametrize("rank", [2, 8])
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_with_an_adapter_are_those_with_merged_weights(name: str, rank: int) -> None:
    torch.manual_seed(0)
    base = fused_experts(AutoModelForCausalLM.from_config(MIXTURES[name])).requires_grad_(False)
    for weight in base.parameters():
        nn.init.normal_(weight, std=0.3)
    layer, scale = LoraExperts(base, rank, scale=1.5), 1.5
    for parameter in layer.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    hidden = torch.randn(23, 64, requires_grad=True)
    weights, chosen = torch.rand(23, 4).topk(2)
    chosen[chosen == 3] = 0  # no token goes to one of the experts
    factors = [p for p in layer.parameters() if p.requires_grad]
    out = layer(hidden, chosen, weights)
    toward = torch.randn_like(out)
    gradients = torch.autograd.grad(out, [hidden, *factors], toward)

    def merged(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return the weights of all experts, by the rule of PEFT's ParamWrapper."""
        delta = torch.einsum("ore,eri->eoi", up.view(len(up), -1, 4), down.view(4, -1, down.shape[1])) * scale
        return weight + (delta.transpose(1, 2) if base.is_transposed else delta)

    whole = {
        "gate_up_proj": merged(base.gate_up_proj, layer.gate_up.lora_A, layer.gate_up.lora_B),
        "down_proj": merged(base.down_proj, layer.down.lora_A, layer.down.lora_B),
    }
    base.config._experts_implementation = "eager"
    expected = torch.func.functional_call(base, whole, (hidden, chosen, weights))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    for own, other in zip(gradients, torch.autograd.grad(expected, [hidden, *factors], toward), strict=True):
        assert other.abs().max() > 0 and (own - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "deepseek_v3", "glm4_moe", "qwen3_next"])
def test_peft_reads_the_adapter(name: str, tmp_path: Path) -> None:
    lora = EXPERTS if name != "deepseek_v3" else EXPERTS.model_copy(update={"target_modules": ("kv_b_proj", "experts")})
    path = save(MIXTURES[name], tmp_path / "model")
    policy = Policy.load(path, "cpu", lora=lora)
    randomise_adapter(policy)
    (tmp_path / "adapter").mkdir()
    save_file(policy.adapter_state(), tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(policy.adapter_config()))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), tmp_path / "adapter")
    loaded = [n for n, _ in model.named_parameters() if ".lora_" in n]
    assert len(loaded) == len(policy.parameters)
    token_ids = torch.tensor(policy.probe_token_ids)
    with torch.no_grad():
        expected = model(token_ids[None]).logits[0, :-1].log_softmax(-1).gather(1, token_ids[1:, None]).squeeze(1)
    torch.testing.assert_close(torch.tensor(policy.probe()), expected, rtol=0, atol=1e-5)


def test_packed_gradients_of_experts_are_those_of_the_sequences(tmp_path: Path) -> None:
    policy = Policy.load(save(MIXTURES["qwen3_moe"], tmp_path), "cpu", lora=EXPERTS)
    randomise_adapter(policy)
    learner, sequences, gradients = Learner(policy), branching_group(seed=3), []
    for rows in (pack(sequences, 500, min_gain=1), [row for s in sequences for row in pack([s], s.num_tokens)]):
        learner.forward_backward(rows, LossConfig())
        gradients.append(learner._optimizer.gradient.clone())
        learner._discard()
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[1].abs().max()


@pytest.mark.slow
def test_compiled_layers_adapt_experts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, but without a compiler of kernels."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    path, gradients = save(MIXTURES["qwen3_moe"], tmp_path), []
    for is_compiled in (False, True):
        policy = Policy.load(path, "cpu", attention="sdpa", lora=EXPERTS, compile=is_compiled)
        randomise_adapter(policy)
        learner = Learner(policy)
        learner.forward_backward(pack(branching_group(seed=3), 500), LossConfig())
        gradients.append(learner._optimizer.gradient.clone())
        assert policy.router_margins.counts[1] > 0
    assert (gradients[1] - gradients[0]).abs().max() <= 1e-5 * gradients[0].abs().max()


def test_the_router_is_never_trained(tmp_path: Path) -> None:
    path = save(MIXTURES["qwen3_moe"], tmp_path)
    with pytest.raises(PolicyError, match="router"):
        Policy.load(path, "cpu", lora=LoraSettings(target_modules=("q_proj", "gate")))
    learner = Learner(policy := Policy.load(path, "cpu", lora=EXPERTS))
    before = {name: p.clone() for name, p in policy._decoder.named_parameters() if not p.requires_grad}
    assert any(name.endswith("mlp.gate.weight") for name in before)
    trained = [p for p in policy._decoder.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in policy.parameters.values()}
    learner.step(pack(branching_group(seed=3), 500), LossConfig(), learning_rate=0.1)
    assert all(torch.equal(before[name], p) for name, p in policy._decoder.named_parameters() if name in before)


# What of a mixture the names adapt


def test_a_mixture_whose_experts_stay_as_they_are_is_reported_with_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(MIXTURES["glm4_moe"], tmp_path)  # a dense layer, and one with a shared expert
    with caplog.at_level(logging.WARNING, "tandem"):
        Policy.load(path, "cpu", lora=LoraSettings(r=2, target_modules=("q_proj", "gate_proj")))
        assert "2 gate_proj, 2 q_proj" in caplog.text and "experts of 1 layers" in caplog.text
        caplog.clear()
        Policy.load(path, "cpu", lora=LoraSettings(r=2, target_modules=("q_proj", "experts")))
    assert not caplog.records


def test_the_names_of_a_dense_model_are_refused_for_a_mixture(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"gate_proj.*add experts"):
        Policy.load(save(MIXTURES["qwen3_moe"], tmp_path), "cpu", lora=LoraSettings())


def test_experts_are_refused_where_there_are_none(qwen3_path: Path) -> None:
    with pytest.raises(PolicyError, match="experts"):
        Policy.load(qwen3_path, "cpu", lora=EXPERTS)
