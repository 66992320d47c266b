"""Mixtures of experts in the engine on a CPU, against the learner's own logprobs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import ray
import torch
from engine_client import start_engine
from transformers import AutoModelForCausalLM, Glm4MoeConfig, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import EngineConfig
from tandem.rl.checkpoints import LearnerState, write_checkpoint
from tandem.rl.policy import Policy
from tandem.rl.settings import LoraSettings

MAX_MODEL_LEN = 128
LORA = LoraSettings(r=8, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
SIZES = {
    "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 512,
    "sliding_window": None, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
FAMILIES: dict[str, tuple[type[PreTrainedConfig], str]] = {
    "qwen3_moe": (Qwen3MoeConfig, "num_experts"),
    "mixtral": (MixtralConfig, "num_local_experts"),
    "glm4_moe": (Glm4MoeConfig, "n_routed_experts"),
}


def write_model(family: str, tiny_model: Path, path: Path) -> Path:
    """Write a random mixture of 8 experts with the tiny model's tokenizer."""
    shutil.copytree(tiny_model, path, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(7)
    kind, number = FAMILIES[family]
    model = AutoModelForCausalLM.from_config(kind(vocab_size=512, **SIZES, **{number: 8}))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)  # else all tokens are predicted almost equally
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "family", [name if name == "qwen3_moe" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_versions_of_a_mixture_score_as_in_the_learner(
    family: str, ray_local: None, tiny_model: Path, tmp_path: Path
) -> None:
    path = write_model(family, tiny_model, tmp_path / "model")
    policy = Policy.load(path, "cpu", lora=LORA, max_length=MAX_MODEL_LEN)
    artifacts, probes = Artifacts(str(tmp_path / "artifacts")), {}
    generator = torch.Generator().manual_seed(1)
    for scale in (0.0, 0.05):
        state = policy.adapter_state()
        policy.load_adapter_state({n: t + scale * torch.randn(t.shape, generator=generator) for n, t in state.items()})
        written = LearnerState(adapter=policy.adapter_state(), optimizer={})
        checkpoint = write_checkpoint(artifacts.checkpoints_dir, written, policy.adapter_config(), {"step": 0})
        probes[checkpoint.digest] = torch.tensor(policy.probe())
    first, second = probes.values()
    assert (first - second).abs().max() > 0.05
    config = EngineConfig(max_num_seqs=8, max_loras=2, max_cpu_loras=4, kv_cache_memory_bytes=1 << 20)
    engine, _ = start_engine(path, 8, config, str(path), family, artifacts.pull_adapter, MAX_MODEL_LEN, LORA)
    try:
        for digest, expected in probes.items():
            [found] = ray.get(engine.score.remote([policy.probe_token_ids], digest))
            torch.testing.assert_close(torch.tensor(found[1:]), expected, rtol=0, atol=1e-4)
    finally:
        ray.get(engine.stop.remote())
        ray.kill(engine)
