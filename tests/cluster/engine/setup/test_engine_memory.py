"""What vLLM allocates for an engine: the cache of each layer, and the LoRA slots."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tandem.cluster.engine.setup.settings import engine_environment, lora_slot_rank
from tandem.cluster.memory.parts import sequence_kv_bytes, slot_bytes
from tandem.rl.models.geometry import geometry_of
from tandem.rl.settings import LoraSettings

NUM_SLOTS = 3
MEASURE = """
import json, sys
from vllm import LLM

settings = json.loads(sys.argv[1])
llm = LLM(skip_tokenizer_init=True, enable_lora=True, enforce_eager=True, dtype="float32", **settings)

def measure(worker):
    slots = [getattr(module, name) for module in worker.model_runner.model.modules()
             for name in ("lora_a_stacked", "lora_b_stacked") if hasattr(module, name)]
    specs = worker.model_runner.get_kv_cache_spec().values()
    return {
        "slots": sum(t.numel() * t.element_size() for pair in slots for t in pair),
        "full": sum(s.page_size_bytes // s.block_size for s in specs if type(s).__name__ == "FullAttentionSpec"),
        "window": sum(s.page_size_bytes // s.block_size * s.sliding_window for s in specs
                      if type(s).__name__ == "SlidingWindowSpec"),
    }

print("measured", json.dumps(llm.collective_rpc(measure)[0]))
"""
CONFIG = CONFIG_MAPPING["olmo3"](
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, sliding_window=64, tie_word_embeddings=False,
    layer_types=["sliding_attention", "full_attention"] * 2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


@pytest.mark.slow
def test_the_plan_counts_what_vllm_allocates(tmp_path: Path) -> None:
    targets = ("q_proj", "o_proj", "gate_proj")  # one of each layer that vLLM packs
    lora = LoraSettings(r=5, target_modules=targets)
    AutoModelForCausalLM.from_config(CONFIG).save_pretrained(tmp_path)
    settings = {
        "model": str(tmp_path), "max_model_len": 128, "max_loras": NUM_SLOTS, "max_cpu_loras": NUM_SLOTS,
        "max_lora_rank": lora_slot_rank(5), "lora_target_modules": list(targets),
        "kv_cache_memory_bytes": 4 << 20, "block_size": 32, "max_num_seqs": 4,
    }  # fmt: skip
    measured = _measure(settings, str(tmp_path))
    geometry = geometry_of(CONFIG, lora)
    assert measured["slots"] == NUM_SLOTS * slot_bytes(geometry, lora.r, width=4, parallel=1)
    assert measured["full"] * 128 + measured["window"] == sequence_kv_bytes(geometry, 128, width=4)


def _measure(settings: dict[str, object], model: str) -> dict[str, int]:
    """Start an engine in a process of its own: vLLM reads its environment once."""
    environment = {**os.environ, **engine_environment("cpu", model)}
    command = [sys.executable, "-c", MEASURE, json.dumps(settings)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    line = next((line for line in run.stdout.splitlines() if line.startswith("measured ")), None)
    assert line, run.stderr[-2000:]
    return json.loads(line.removeprefix("measured "))
