"""The engine scores as the learner does, under an adapter: families with windows, sinks or soft caps, the text of
multimodal ones, and a hybrid with Mamba 2.

The models are tiny and random. Their windows are much shorter than the sequences.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from score_on_engines import MAX_LENGTH, score_on_engines
from transformers import CONFIG_MAPPING, PreTrainedConfig

from tandem.rl.checkpoints import LearnerState, write_checkpoint
from tandem.rl.models.base_weights import empty_model
from tandem.rl.packing import one_segment
from tandem.rl.policy import Policy
from tandem.rl.settings import LoraSettings

WINDOW = 20
TOLERANCE = 1e-4
SIZES = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 32}
FAMILIES = {
    name: CONFIG_MAPPING[name](**SIZES | settings)
    for name, settings in {
        "gemma3_text": SLIDING | {"query_pre_attn_scalar": 32},
        "gemma2": SLIDING | CAPS,
        "olmo3": SLIDING,
        "mistral": {"sliding_window": WINDOW},
        "phi3": {"sliding_window": WINDOW},
        "gpt_oss": SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2},
        "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.5},
        "cohere2": {"sliding_window": MAX_LENGTH, "layer_types": SLIDING["layer_types"], "logit_scale": 0.25},
    }.items()
}
POSITIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]}}
EYE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
PIXTRAL = EYE | {"model_type": "pixtral", "num_attention_heads": 2, "head_dim": 16}
QWEN_EYE = EYE | {"depth": 1, "num_heads": 2, "out_hidden_size": 64}
WIDE = POSITIONS | {"hidden_size": 128}  # as wide as all heads together, which transformers expects of both
GEMMA4 = SLIDING | {
    "model_type": "gemma4_text", "final_logit_softcapping": 10.0, "num_kv_shared_layers": 0, "global_head_dim": 32,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 512,
}  # fmt: skip
FULL = {"layer_types": ["full_attention"] * 2}
FAMILIES |= {
    name: CONFIG_MAPPING[name](text_config=SIZES | text, vision_config=vision)
    for name, text, vision in [
        ("gemma3", SLIDING | {"query_pre_attn_scalar": 32}, EYE | {"num_attention_heads": 2}),
        ("gemma4", GEMMA4, EYE | {"num_attention_heads": 2}),
        ("llava", {"model_type": "llama"}, EYE | {"num_attention_heads": 2}),
        (
            "mistral3",
            {"model_type": "mistral", "sliding_window": WINDOW},
            EYE | {"model_type": "pixtral", "head_dim": 16},
        ),
        ("qwen2_vl", WIDE, QWEN_EYE | {"embed_dim": 32, "hidden_size": 128}),
        ("qwen2_5_vl", WIDE, QWEN_EYE | {"out_hidden_size": 128}),
        ("qwen3_vl", POSITIONS, QWEN_EYE | {"deepstack_visual_indexes": [0]}),
        ("qwen3_5", FULL, QWEN_EYE),
    ]
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
GRANITE4 = {"hidden_size": 128, "layer_types": ["mamba", "attention"], "num_local_experts": 0}
FAMILIES["granitemoehybrid"] = CONFIG_MAPPING["granitemoehybrid"](
    **SIZES | MAMBA | GRANITE4 | {"shared_intermediate_size": 128}
)
EVERY_RUN = ["gemma3"]  # multimodal, with windows
MULTIMODAL = [name for name, config in FAMILIES.items() if hasattr(config, "vision_config") and name not in EVERY_RUN]
HYBRID = ["granitemoehybrid"]
GROUPS = {
    "multimodal": MULTIMODAL,
    "hybrid": HYBRID,
    "text": [name for name in FAMILIES if name not in [*EVERY_RUN, *MULTIMODAL, *HYBRID]],
}
SLOW = [pytest.param(names, marks=pytest.mark.slow, id=group) for group, names in GROUPS.items()]


def save(config: PreTrainedConfig, tiny_model: Path, path: Path) -> Path:
    """Write a random model with the tiny model's tokenizer, with weights so large that it shows what is seen."""
    torch.manual_seed(7)
    model = empty_model(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3) if weight.dim() > 1 else weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(path)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / file, path)
    return path


def learned(path: Path, directory: Path, sequences: list[list[int]]) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Return a job for an engine, with a random adapter, and the learner's logprobs under that."""
    config = json.loads((path / "config.json").read_text())
    targets = ("qkv_proj", "o_proj") if config["model_type"] == "phi3" else ("q_proj", "k_proj", "v_proj", "o_proj")
    lora = LoraSettings(r=4, target_modules=targets)
    policy = Policy.load(path, "cpu", lora=lora, max_length=MAX_LENGTH)
    generator = torch.Generator().manual_seed(1)
    state = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in policy.adapter_state().items()}
    policy.load_adapter_state(state)
    digest = write_checkpoint(directory, LearnerState(state, {}), policy.adapter_config(), {}).digest
    logprobs = [policy.logprobs(one_segment(torch.tensor(tokens)))[0][:-1].detach() for tokens in sequences]
    job = {"model": str(path), "adapters": str(directory), "digest": digest, "lora": lora.model_dump()}
    parser = "openai" if config["model_type"] == "gpt_oss" else "hermes"
    return job | {"sequences": sequences, "tool_call_parser": parser}, logprobs


@pytest.mark.parametrize("names", [pytest.param(EVERY_RUN, id="few"), *SLOW])
def test_engines_score_as_learners_do(tiny_model: Path, tmp_path: Path, names: list[str]) -> None:
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(8, 500, (n,), generator=generator).tolist() for n in (200, 77, WINDOW + 1, 3)]
    paths = [save(FAMILIES[name], tiny_model, tmp_path / name) for name in names]
    jobs = [learned(path, tmp_path / "adapters", sequences) for path in paths]
    scores = score_on_engines([job for job, _ in jobs])
    apart = {}
    for name, (job, expected) in zip(names, jobs, strict=True):
        found = scores[job["model"]]
        pairs = zip(found, expected, strict=True) if isinstance(found, list) else []
        differences = [(torch.tensor(logprobs[1:]) - own).abs().max().item() for logprobs, own in pairs]
        apart[name] = max(differences) if differences else found
    assert all(isinstance(worst, float) and worst < TOLERANCE for worst in apart.values()), apart
