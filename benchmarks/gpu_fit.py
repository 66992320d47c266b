"""Write the table of docs/gpus.md: on which GPUs base models fit, and with which settings. Arithmetic, not measured.

PYTHONPATH=. python benchmarks/gpu_fit.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from tandem.cluster.config import BaseModelConfig, LearnersConfig
from tandem.cluster.memory.fit import Fit, find_fit
from tandem.cluster.memory.plan import Tenant
from tandem.rl.models.geometry import Geometry, geometry_of
from tandem.rl.settings import LoraSettings

PAGE = Path(__file__).parents[1] / "docs/gpus.md"
GPUS_GB = (80, 141)
NUM_GPUS = (1, 2, 4, 8)
BEGIN, END = "<!-- written by benchmarks/gpu_fit.py -->", "<!-- end -->"
LORA = LoraSettings(r=16)
ATTENTION_ONLY = LoraSettings(r=16, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
QWEN3: dict[str, Any] = {"model_type": "qwen3", "vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128}
PUBLIC: dict[str, dict[str, Any]] = {
    "Qwen3-4B": QWEN3
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
    | {"tie_word_embeddings": True},
    "Qwen3-8B": QWEN3
    | {"hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32}
    | {"tie_word_embeddings": False},
    "Qwen3-14B": QWEN3
    | {"hidden_size": 5120, "intermediate_size": 17_408, "num_hidden_layers": 40, "num_attention_heads": 40}
    | {"tie_word_embeddings": False},
    "Qwen3-32B": QWEN3
    | {"hidden_size": 5120, "intermediate_size": 25_600, "num_hidden_layers": 64, "num_attention_heads": 64}
    | {"tie_word_embeddings": False},
    "Llama-3.3-70B": {
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 8192, "intermediate_size": 28_672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""What the published config.json of each model says of its sizes."""


def geometry(model: str) -> Geometry:
    """Count a public model, with LoRA on all linear layers, or on those of attention beside experts."""
    settings = dict(PUBLIC[model])
    config = CONFIG_MAPPING[settings.pop("model_type")](**settings)
    return geometry_of(config, _lora(model))


def table() -> str:
    """Return the table in Markdown: a row per model and GPU memory, a column per number of GPUs."""
    lines = [
        f"| base model | parameters | GPU | {' | '.join(_gpus(number) for number in NUM_GPUS)} |",
        f"|---|--:|--:|{'---|' * len(NUM_GPUS)}",
    ]
    for model in PUBLIC:
        counted = geometry(model)
        base = BaseModelConfig(name=model, path=model, lora=_lora(model), learners=LearnersConfig(jobs_at_once=1))
        tenant = Tenant(base, counted, 0)
        for memory in GPUS_GB:
            cells = [_cell(find_fit(tenant, memory * 10**9, number)) for number in NUM_GPUS]
            lines.append(f"| {model} | {counted.num_parameters / 1e9:.2f} · 10⁹ | {memory} GB | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """Return the page with the current table between its marks."""
    return re.sub(f"{BEGIN}\n.*?{END}", f"{BEGIN}\n{table()}\n{END}", page, flags=re.DOTALL)


def _lora(model: str) -> LoraSettings:
    return ATTENTION_ONLY if "num_experts" in PUBLIC[model] else LORA


def _gpus(number: int) -> str:
    return f"{number} GPU{'s' if number > 1 else ''}"


def _cell(fit: Fit | None) -> str:
    if fit is None:
        return "no"
    gpus = "shared" if fit.shares and fit.shard == 1 else f"{fit.shard} + {fit.tensor_parallel_size}"
    gpus += ", one shared" if fit.shares and fit.shard > 1 else ""
    return f"{gpus}: {fit.max_model_len // 1024}k, {fit.kv_tokens // 1000:,}k"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
