"""The names of modules tell where they lie, in models of many families."""

from __future__ import annotations

import pytest
import torch
from model_families import FULL, LINEAR, MIXTURES, WINDOWED, family
from transformers import PreTrainedConfig

from tandem.rl.models.base_weights import empty_model
from tandem.rl.models.lora.experts import is_fused_experts
from tandem.rl.models.lora.linear import LINEAR_LAYERS
from tandem.rl.models.lora.parts import MLP_MODULES

PARTS = {"self_attn": False, "attention": False, "linear_attn": False, "conv": False, "mlp": True, "feed_forward": True}
"""Whether these modules of a layer are MLPs."""
FAMILIES = [
    *(FULL[name] for name in ("llama", "phi with a bias of its logits", "gpt_neox", "starcoder2", "deepseek_v3")),
    *(WINDOWED[name] for name in ("phi3", "gemma3", "gemma4")),
    *(MIXTURES[name] for name in ("qwen3_moe", "mixtral", "gpt_oss", "qwen3_next")),
    family("qwen3_5_text", **LINEAR),
    family("lfm2", layer_types=["conv", "full_attention"]),
]


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model_type)
def test_names_tell_parts(config: PreTrainedConfig) -> None:
    with torch.device("meta"):
        decoder = empty_model(config).get_decoder()
    found: dict[str, bool] = {}
    for name, module in decoder.named_modules():
        *path, own = name.split(".")
        is_mlp = [PARTS[part] for part in path if part in PARTS]
        if is_mlp and (isinstance(module, LINEAR_LAYERS) or is_fused_experts(module)):
            assert found.setdefault(own, is_mlp[0]) == is_mlp[0], own
    assert set(found.values()) == {True, False}
    assert found == {own: own in MLP_MODULES for own in found}
