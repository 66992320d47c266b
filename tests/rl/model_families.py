"""Small configurations and random models of many families, for the tests of base models.

Their windows have 16 tokens, so that short sequences show them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from small_models import small_config
from transformers import CONFIG_MAPPING, PreTrainedConfig

from tandem.rl.models.base_weights import empty_model
from tandem.rl.settings import LoraSettings

WINDOW = 16
MIXTURE = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
DEEP = SLIDING | {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
GEMMA4 = {
    "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 199,
    "global_head_dim": 32,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}


def family(model_type: str, text: dict[str, object] | None = None, **overrides: object) -> PreTrainedConfig:
    """Return a small configuration. `text` goes into the language model's part of a multimodal family."""
    config_class = CONFIG_MAPPING[model_type]
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if text is None:
        return small_config(config_class, **special, **overrides)
    part = {key: value for key, value in small_config().to_dict().items() if key in _SIZES} | special | text
    return config_class(text_config=part, vision_config=_EYE, **overrides)


_EYE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip


def save(config: PreTrainedConfig, path: Path) -> Path:
    """Write a random model, with weights large enough that its predictions depend on what it sees."""
    torch.manual_seed(7)
    model = empty_model(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    model.save_pretrained(path)
    return path


FULL = {
    "llama": family("llama"),
    "llama3 positions": family(
        "llama",
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": family("qwen2"),
    "qwen2 with a window it does not use": family("qwen2", use_sliding_window=False, sliding_window=WINDOW),
    "qwen3_moe": family("qwen3_moe", **MIXTURE),
    "mistral": family("mistral", sliding_window=None),
    "mixtral": family("mixtral", sliding_window=None, **MIXTURE),
    "olmo2": family("olmo2"),
    "gemma": family("gemma"),
    "glm4": family("glm4"),
    "smollm3": family("smollm3"),
    "gpt_neox": family("gpt_neox"),
    "stablelm": family("stablelm"),
    "starcoder2": family("starcoder2", sliding_window=None),
    "deepseek_v3": family("deepseek_v3", **LATENT, **MIXTURE, first_k_dense_replace=1),
    "qwen3_5 without linear layers": family("qwen3_5", LINEAR | {"layer_types": ["full_attention"] * 2}),
    "qwen3_vl": family("qwen3_vl", {}),
    "qwen2_5_vl": family("qwen2_5_vl", {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}),
    "llava": family("llava", {"model_type": "llama"}),
    "cohere with scaled logits": family("cohere"),
    "granite with scaled logits": family("granite", logits_scaling=3.0, embedding_multiplier=2.0),
    "phi with a bias of its logits": family("phi"),
    "gemma2 without windows": family("gemma2", layer_types=["full_attention"] * 2, final_logit_softcapping=5.0),
}  # fmt: skip
WINDOWED = {
    "mistral": family("mistral", sliding_window=WINDOW),
    "mixtral": family("mixtral", sliding_window=WINDOW, **MIXTURE),
    "phi3": family("phi3", sliding_window=WINDOW),
    "qwen2": family("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": family("qwen3", use_sliding_window=True, **SLIDING),
    "gemma2": family("gemma2", **SLIDING, attn_logit_softcapping=2.0, final_logit_softcapping=5.0),
    "gemma3": family("gemma3", SLIDING),
    "gemma3_text": family("gemma3_text", **SLIDING),
    "gpt_oss": family("gpt_oss", **SLIDING, **MIXTURE),
    "olmo3": family("olmo3", **SLIDING),
    "cohere2": family("cohere2", **SLIDING),
    "windows only": family("olmo3", **SLIDING | {"layer_types": ["sliding_attention"] * 2}),
    "exaone4": family("exaone4", **SLIDING),
    "gemma3n with shared keys": family(
        "gemma3n_text",
        **DEEP,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=199,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "gemma4": family("gemma4", SLIDING | GEMMA4 | {"model_type": "gemma4_text", "final_logit_softcapping": 10.0}),
    "gemma4 with shared keys": family("gemma4_text", **DEEP, **GEMMA4 | {"num_kv_shared_layers": 2}),
    "mistral3": family("mistral3", {"model_type": "mistral", "sliding_window": WINDOW}),
}


def adapted(config: PreTrainedConfig) -> LoraSettings:
    fused = {"gpt_neox": "query_key_value", "deepseek_v3": "kv_b_proj", "phi3": "qkv_proj"}
    return LoraSettings(r=2, target_modules=(fused.get(config.model_type, "q_proj"),))


MIXTURES = {
    "qwen3_moe": family("qwen3_moe", **MIXTURE),
    "mixtral": family("mixtral", sliding_window=None, **MIXTURE),
    "deepseek_v3": family("deepseek_v3", **LATENT, **MIXTURE, first_k_dense_replace=1),
    "glm4_moe": family("glm4_moe", **MIXTURE, first_k_dense_replace=1),
    "gpt_oss": family("gpt_oss", **MIXTURE),
    "qwen3_next": family("qwen3_next", **MIXTURE, layer_types=["full_attention"] * 2),
    "qwen3_5_moe_text": family("qwen3_5_moe_text", **MIXTURE, layer_types=["full_attention"] * 2),
}
EXPERTS = LoraSettings(r=3, alpha=6, target_modules=("q_proj", "experts"))
