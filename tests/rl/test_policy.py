"""The policy over packed sequences: attention, output head, adapter, and rejected models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from small_models import VOCABULARY, packed_group, randomise_adapter, unpacked
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, Qwen3ForCausalLM

from tandem.rl.checkpoints import LearnerState, write_checkpoint
from tandem.rl.models.attention.masks import Attention, dense_mask
from tandem.rl.models.layers.output_head import logit_rule
from tandem.rl.models.lora.adapter import peft_config
from tandem.rl.packed_rows import PackedSequence
from tandem.rl.policy import Policy, PolicyError, initial_adapter, resolve_device
from tandem.rl.settings import LoraSettings

# Attention


def test_dense_mask_by_hand() -> None:
    """A prompt of two tokens (segment 0), its completions 1 (two tokens) and 2 (one token), and an unrelated token."""
    ids, zeros = torch.tensor([0, 0, 1, 1, 2, 3]), torch.zeros(6)
    row = PackedSequence(
        token_ids=ids,
        positions=torch.tensor([0, 1, 2, 3, 2, 0]),
        segment_ids=ids,
        parent_ids=torch.tensor([0, 0, 0, 0, 0, 3]),
        loss_mask=zeros.bool(),
        sampling_logprobs=zeros,
        advantages=zeros,
        weights=zeros,
    )
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert dense_mask(row)[0, 0].int().tolist() == expected
    expected[4][1] = 0  # a completion that leaves the prompt one token earlier doesn't see its last one
    row = replace(row, positions=torch.tensor([0, 1, 2, 3, 1, 0]))
    assert dense_mask(row)[0, 0].int().tolist() == expected


@pytest.mark.parametrize("attention", ["eager", "segments"])
def test_it_computes_what_sdpa_computes(qwen3_path: Path, attention: Attention) -> None:
    packed = packed_group(11, [9, 14, 7])
    found = []
    for implementation in ("sdpa", attention):
        policy = Policy.load(qwen3_path, "cpu", attention=implementation)
        randomise_adapter(policy)
        logprobs, _ = policy.logprobs(packed)
        logprobs.nansum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters.values()])
        found.append((logprobs.detach(), gradient))
    (expected, expected_gradient), (logprobs, gradient) = found
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-5 * expected_gradient.abs().max().item())


# Logprobs


def test_logprobs_are_the_models_own(qwen3_path: Path) -> None:
    """Compare one unpacked sequence with a direct call of the model."""
    (row,) = unpacked(packed_group(0, [23]))
    policy = Policy.load(qwen3_path, "cpu")
    logprobs, entropy = policy.logprobs(row, chunk_size=5, with_entropy=True)
    model = Qwen3ForCausalLM.from_pretrained(qwen3_path)
    with torch.no_grad():
        log_softmax = torch.log_softmax(model(row.token_ids[None]).logits[0], dim=-1)
    expected = log_softmax[:-1].gather(1, row.token_ids[1:, None]).squeeze(1)
    torch.testing.assert_close(logprobs[:-1], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy[:-1], -(log_softmax.exp() * log_softmax).sum(-1)[:-1], rtol=0, atol=1e-5)
    assert logprobs[-1].isnan()
    assert entropy[-1].isnan()


def test_packed_logprobs_are_the_unpacked_ones(qwen3_path: Path) -> None:
    packed = packed_group(11, [9, 14, 7])
    policy = Policy.load(qwen3_path, "cpu")
    randomise_adapter(policy)
    with torch.no_grad():
        together, _ = policy.logprobs(packed)
        apart = torch.cat([policy.logprobs(row)[0][10:] for row in unpacked(packed)])
    # The prompt's last token predicts the first token of each completion. Unpacked rows have this prediction, a
    # packed row doesn't, so the first token is never trained.
    boundaries = torch.tensor([0, 10, 25])
    assert not apart[boundaries].isnan().any()
    apart = apart[[t for t in range(len(apart)) if t not in boundaries]]
    torch.testing.assert_close(together[11:], apart, rtol=0, atol=1e-5, equal_nan=True)
    assert together.isnan().nonzero().squeeze(1).tolist() == [10, 19, 33, 40]


def test_trained_only_leaves_out_the_rest(qwen3_path: Path) -> None:
    packed = packed_group(11, [9, 14, 7])
    policy = Policy.load(qwen3_path, "cpu")
    every, _ = policy.logprobs(packed)
    trained, entropy = policy.logprobs(packed, with_entropy=True, trained_only=True)
    wanted = packed.loss_mask.roll(-1)
    assert torch.equal(trained.isnan(), ~wanted)
    assert torch.equal(entropy.isnan(), ~wanted)
    torch.testing.assert_close(trained[wanted], every[wanted], rtol=0, atol=1e-6)


def test_a_trained_first_token_is_refused(qwen3_path: Path) -> None:
    packed = packed_group(0, [5, 6])
    loss_mask = packed.loss_mask.clone()
    loss_mask[5] = True
    with pytest.raises(AssertionError, match="first token of a segment"):
        Policy.load(qwen3_path, "cpu").logprobs(replace(packed, loss_mask=loss_mask))


def test_train_mode_dropout_and_checkpointing_change_nothing(tmp_path: Path) -> None:
    """GPT-2 has dropout by default, and transformers recomputes layers only in train mode."""
    path = tmp_path / "gpt2"
    torch.manual_seed(0)
    config = GPT2LMHeadModel.config_class(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(path)
    packed = packed_group(11, [9, 14, 7])
    lora = LoraSettings(target_modules=("q_attn", "c_proj"))
    with pytest.raises(PolicyError, match="target_modules names q_attn"):
        Policy.load(path, "cpu", lora=lora)
    lora = LoraSettings(target_modules=("c_attn", "c_proj"))
    gradients = []
    for gradient_checkpointing in (False, True):
        policy = Policy.load(path, "cpu", lora=lora, gradient_checkpointing=gradient_checkpointing)
        randomise_adapter(policy)
        logprobs, _ = policy.logprobs(packed, trained_only=True)
        logprobs[packed.loss_mask.roll(-1)].sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters.values()]))
    assert gradients[0].abs().max() > 1e-3
    assert torch.equal(*gradients)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("dtype", "attention", "tolerance"),
    [("float32", "sdpa", 1e-4), ("float32", "flex_attention", 1e-3), ("auto", "auto", 0.2)],
)
def test_a_gpu_agrees_with_the_cpu(qwen3_path: Path, dtype: str, attention: str, tolerance: float) -> None:
    packed = packed_group(50, [60, 45, 70])
    results = []
    for policy in (
        Policy.load(qwen3_path, "cpu"),
        Policy.load(qwen3_path, "cuda", dtype, attention),
    ):
        randomise_adapter(policy)
        logprobs, entropy = policy.logprobs(packed, 64, with_entropy=True, trained_only=True)
        trained = packed.loss_mask.roll(-1).to(policy.device)
        logprobs[trained].sum().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in policy.parameters.values()])
        results.append([values.detach().cpu() for values in (logprobs[trained], entropy[trained], gradient)])
    (logprobs, entropy, gradient), (gpu_logprobs, gpu_entropy, gpu_gradient) = results
    torch.testing.assert_close(gpu_logprobs, logprobs, rtol=0, atol=tolerance)
    torch.testing.assert_close(gpu_entropy, entropy, rtol=0, atol=tolerance)
    assert torch.cosine_similarity(gpu_gradient, gradient, dim=0) > 1 - tolerance / 4


# Adapter


def test_initial_adapter_is_that_of_a_loaded_policy_and_changes_no_output(qwen3_path: Path) -> None:
    lora = LoraSettings(r=4, seed=11)
    policy = Policy.load(qwen3_path, "cpu", lora=lora)
    state, without_weights = policy.adapter_state(), initial_adapter(qwen3_path, lora)
    assert list(state) == list(without_weights)
    assert len(state) == 2 * 7 * 2
    for name, tensor in state.items():
        assert torch.equal(tensor, without_weights[name])
        assert tensor.dtype == torch.float32
        assert bool(tensor.any()) == name.endswith("lora_A.weight")
    other_seed = initial_adapter(qwen3_path, LoraSettings(r=4, seed=12))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert not torch.equal(other_seed[name], state[name])
    assert state[name].shape == (4, 64)
    assert 0.11 < state[name].abs().max() <= 1 / 8


def test_adapter_is_float32_over_a_bfloat16_base(qwen3_path: Path) -> None:
    policy = Policy.load(qwen3_path, "cpu", dtype="bfloat16")
    assert all(parameter.dtype == torch.float32 for parameter in policy.parameters.values())
    packed = packed_group(11, [9, 14])
    logprobs, _ = policy.logprobs(packed, trained_only=True)
    assert logprobs.dtype == torch.float32
    exact, _ = Policy.load(qwen3_path, "cpu").logprobs(packed, trained_only=True)
    torch.testing.assert_close(logprobs, exact, rtol=0, atol=0.03, equal_nan=True)


def test_loading_a_state_is_in_place_and_exact(qwen3_path: Path) -> None:
    policy = Policy.load(qwen3_path, "cpu")
    before = {name: parameter.data_ptr() for name, parameter in policy.parameters.items()}
    other = {name: torch.full_like(tensor, 0.25) for name, tensor in policy.adapter_state().items()}
    policy.load_adapter_state(other)
    assert before == {name: parameter.data_ptr() for name, parameter in policy.parameters.items()}
    copied = policy.adapter_state()
    assert all(torch.equal(copied[name], other[name]) for name in other)
    next(iter(copied.values())).zero_()
    assert next(iter(policy.adapter_state().values())).any()


def test_the_adapter_has_the_names_and_shapes_of_pefts(qwen3_path: Path) -> None:
    settings = LoraSettings(r=4)
    model = peft.get_peft_model(Qwen3ForCausalLM.from_pretrained(qwen3_path), peft_config(settings))
    expected = peft.get_peft_model_state_dict(model)
    found = Policy.load(qwen3_path, "cpu", lora=settings).adapter_state()
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}


def test_an_adapter_of_other_settings_is_refused(qwen3_path: Path) -> None:
    policy = Policy.load(qwen3_path, "cpu")
    with pytest.raises(PolicyError, match=r"lora_A.weight it has \(4, 128\), the policy expects \(8, 128\)"):
        policy.load_adapter_state(initial_adapter(qwen3_path, LoraSettings(r=4)))
    with pytest.raises(PolicyError, match=r"down_proj.lora_A.weight it has nothing"):
        policy.load_adapter_state(initial_adapter(qwen3_path, LoraSettings(target_modules=("q_proj",))))


def test_peft_loads_the_adapter_from_a_checkpoint(qwen3_path: Path, tmp_path: Path) -> None:
    (row,) = unpacked(packed_group(0, [23]))
    policy = Policy.load(qwen3_path, "cpu", lora=LoraSettings(r=4, alpha=32))
    randomise_adapter(policy)
    config = policy.adapter_config()
    assert json.loads(json.dumps(config)) == config
    assert str(qwen3_path) not in json.dumps(config)
    checkpoint = write_checkpoint(tmp_path, LearnerState(policy.adapter_state()), config, {})
    model = peft.PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(qwen3_path), checkpoint.path)
    with torch.no_grad():
        log_softmax = torch.log_softmax(model(input_ids=row.token_ids[None]).logits[0], dim=-1)
        logprobs, _ = policy.logprobs(row)
        base, _ = Policy.load(qwen3_path, "cpu").logprobs(row)
    expected = log_softmax[:-1].gather(1, row.token_ids[1:, None]).squeeze(1)
    torch.testing.assert_close(logprobs[:-1], expected, rtol=0, atol=1e-5)
    assert (logprobs[:-1] - base[:-1]).abs().max() > 0.01


# Models that can't be trained faithfully are rejected


def test_logits_that_are_changed_in_an_unknown_way_are_refused(qwen3_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(qwen3_path)
    model.lm_head.register_forward_hook(lambda module, args, logits: logits**3)
    with pytest.raises(PolicyError, match="changes its logits"):
        logit_rule(model)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_targets_outside_the_layers_are_refused(qwen3_path: Path, target: str) -> None:
    names = ("q_proj", target)
    with pytest.raises(ValueError, match=target):
        LoraSettings(target_modules=names)
    with pytest.raises(PolicyError, match="inside the transformer"):
        initial_adapter(qwen3_path, LoraSettings.model_construct(**{**dict(LoraSettings()), "target_modules": names}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_places_without_a_gpu(qwen3_path: Path) -> None:
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(PolicyError, match="no GPU here"):
        resolve_device("cuda")
    with pytest.raises(PolicyError, match="no backward pass on a CPU"):
        Policy.load(qwen3_path, attention="flex_attention")
