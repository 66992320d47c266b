"""Sizes of base models, counted without weights."""

import pytest
import torch
from model_families import FULL, WINDOWED
from small_models import small_config
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from tandem.rl.models.geometry import KvLayers, geometry_of, kv_layers
from tandem.rl.models.layers.rms_norm import use_fast_rms_norms
from tandem.rl.models.lora.adapter import add_adapter, initial_state
from tandem.rl.settings import LoraSettings

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ATTENTION = LoraSettings(r=3, target_modules=("q_proj", "v_proj"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2", "olmo2"])
def test_counts_are_those_of_a_real_model(family, tied):
    config = small_config(CONFIG_MAPPING[family], **SPECIAL, tie_word_embeddings=tied)
    geometry = geometry_of(config, ATTENTION)
    model = AutoModelForCausalLM.from_config(config)
    numbers = [parameter.numel() for parameter in model.parameters()]
    of_layers = [sum(p.numel() for p in layer.parameters()) for layer in model.get_decoder().layers]
    adapter = add_adapter(model, ATTENTION)
    assert geometry.num_parameters == sum(numbers)
    assert geometry.num_parameters - geometry.layer_parameters == (1 if tied else 2) * 199 * 64 + 64  # and a norm
    assert (geometry.layer_parameters, geometry.largest_layer_parameters) == (sum(of_layers), max(of_layers))
    assert geometry.lora_parameters == sum(parameter.numel() for parameter in adapter.values())


def test_parameters_are_divided_by_how_ranks_split_them():
    geometry = geometry_of(small_config(), ATTENTION)
    norms = 2 * (2 * 64 + 2 * 16) + 64  # of two layers: around attention, of query and key; and the last one
    assert geometry.replicated_parameters == norms
    assert geometry.kv_parameters == 2 * 2 * 64 * 32
    assert geometry.num_parameters == geometry.split_parameters + geometry.kv_parameters + norms


@pytest.mark.parametrize("config", [WINDOWED["gemma3"], FULL["qwen3_vl"], FULL["qwen2_5_vl"]])
def test_an_engine_has_no_encoder_of_images(config):
    whole = geometry_of(config, ATTENTION)
    served = whole.split_parameters + whole.kv_parameters + whole.replicated_parameters
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    outside = ("vision_tower", "visual", "multi_modal_projector")
    encoders = [p.numel() for name, p in model.named_parameters() if any(part in name for part in outside)]
    assert encoders and served == whole.num_parameters - sum(encoders)


def test_routers_are_whole_on_every_rank_and_experts_count():
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    geometry = geometry_of(small_config(CONFIG_MAPPING["qwen3_moe"], **SPECIAL, **mixture), ATTENTION)
    assert geometry.layer_parameters > 2 * 4 * 3 * 64 * 32
    assert geometry.replicated_parameters == 2 * (2 * 64 + 2 * 16 + 4 * 64) + 64


def test_adapted_layers_bring_those_that_vllm_computes_with_them():
    geometry = geometry_of(small_config(), ATTENTION)
    assert {(layer.name, layer.inputs, layer.outputs, layer.count) for layer in geometry.adapted} == {
        ("q_proj", 64, 64, 2), ("k_proj", 64, 32, 2), ("v_proj", 64, 32, 2)
    }  # fmt: skip
    assert geometry.lora_parameters == 2 * 3 * (64 + 64 + 64 + 32)  # without k_proj


def test_adapted_experts_count_one_by_one():
    """PEFT has one A for gate and up of an expert, vLLM one for each."""
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    lora = LoraSettings(r=3, target_modules=("experts",))
    geometry = geometry_of(small_config(CONFIG_MAPPING["qwen3_moe"], **SPECIAL, **mixture), lora)
    assert geometry.lora_parameters == 2 * 4 * 3 * ((64 + 2 * 32) + (32 + 64))
    assert {(layer.name, layer.inputs, layer.outputs, layer.count) for layer in geometry.adapted} == {
        ("gate_proj", 64, 32, 2 * 2 * 4), ("down_proj", 32, 64, 2 * 4)
    }  # fmt: skip


def test_cached_layers_have_their_reach():
    sliding = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    assert kv_layers(small_config()) == (KvLayers(2, 2, 32, None),)
    assert kv_layers(small_config(CONFIG_MAPPING["olmo3"], **SPECIAL, **sliding)) == (
        KvLayers(1, 2, 32, 16), KvLayers(1, 2, 32, None)
    )  # fmt: skip
    linear = {
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention", "full_attention"],
    }  # fmt: skip
    # keys 2 x 16, values 4 x 16: three columns of the convolution, and a matrix per value head
    state = (2 * 32 + 64) * 3 + 4 * 16 * 16
    assert kv_layers(small_config(CONFIG_MAPPING["qwen3_next"], **SPECIAL, **linear)) == (
        KvLayers(1, 1, state, 0), KvLayers(1, 2, 32, None)
    )  # fmt: skip


def test_heads_may_differ_in_size_between_layers():
    geometry = geometry_of(WINDOWED["gemma4"], ATTENTION)
    # Two key-value heads of 16 in layers with windows, of 32 in others, which have four query heads.
    assert geometry.kv_layers == (KvLayers(1, 2, 2 * 16, 16), KvLayers(1, 2, 2 * 32, None))
    assert geometry.work.attention_width == 4 * 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [{}, {"hidden_size": 320, "intermediate_size": 1216, "head_dim": 128}])
def test_what_a_step_saves_is_below_the_estimate(dtype, shape):
    """Count what autograd keeps of one layer in a real forward pass."""
    config, lora = small_config(num_hidden_layers=1, **shape), LoraSettings(r=1)
    geometry = geometry_of(config, lora)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype)
    parameters = add_adapter(model, lora)
    for name, value in initial_state({name: p.shape for name, p in parameters.items()}, lora).items():
        parameters[name].data.copy_(value)
    use_fast_rms_norms(model.get_decoder())
    known = {parameter.data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in known:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    num_tokens = 256
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.get_decoder()(torch.arange(num_tokens)[None] % 199)[0]
    assert hidden.requires_grad
    per_token = sum(saved.values()) / dtype.itemsize / num_tokens
    assert 0.6 * geometry.saved_width < per_token < geometry.saved_width


@pytest.mark.parametrize(
    ("quantized", "bits"),
    [
        (None, None),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "compressed-tensors", "config_groups": {"0": {"weights": {"num_bits": 8}}}}, 8),
    ],
)
def test_quantized_files_say_how_many_bits_a_weight_has(quantized, bits):
    config = small_config()
    if quantized:
        config.quantization_config = quantized
    assert geometry_of(config, ATTENTION).quantized_bits == bits
