"""Base models that an engine can't serve with adapters are refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import (
    BambaConfig,
    Cohere2Config,
    GptOssConfig,
    GraniteMoeHybridConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig
from tandem.cluster.engine.setup.servable import check_servable
from tandem.rl.errors import PolicyError


def base(num_gpus: float | None, *targets: str, path: str = "x") -> BaseModelConfig:
    lora = {"target_modules": targets or ("q_proj",)}
    return BaseModelConfig.model_validate({"name": "x", "path": path, "lora": lora, "engine": {"num_gpus": num_gpus}})


@pytest.mark.parametrize(
    ("config", "num_gpus", "targets", "reason"),
    [
        (Qwen3MoeConfig(), 0, ("q_proj", "experts"), "kernels for adapters on experts"),
        (MixtralConfig(), 1, ("experts",), "mixtral"),
        (Qwen3_5TextConfig(), 0, ("q_proj",), "qwen3_5_text"),
        (Cohere2Config(sliding_window=4096), 1, ("q_proj",), "max_model_len to at most 4096"),
        (GptOssConfig(), 1, ("q_proj",), "tool_call_parser to openai"),
        (BambaConfig(), 1, ("q_proj",), "bamba"),
    ],
)
def test_what_an_engine_cannot_serve_is_refused_with_the_reason(
    config: PreTrainedConfig, num_gpus: float, targets: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(PolicyError, match=reason):
        check_servable(base(num_gpus, *targets), config)
    config.save_pretrained(tmp_path)
    resolved = ResolvedBaseModel(base(num_gpus, *targets, path=str(tmp_path)))
    with pytest.raises(PolicyError, match=f"Base model x .*{reason}"):
        resolved.write_initial_version(Artifacts(str(tmp_path / "artifacts")))


@pytest.mark.parametrize(
    ("config", "num_gpus", "targets"),
    [
        (Qwen3Config(), 0, ("q_proj",)),
        (Qwen3MoeConfig(), 0, ("q_proj",)),
        (Qwen3MoeConfig(), 0.5, ("experts",)),
        (MixtralConfig(), 1, ("q_proj",)),
        (Qwen3_5TextConfig(), 1, ("q_proj",)),
        (Qwen3_5TextConfig(layer_types=["full_attention"] * 32), 0, ("q_proj",)),
        (Qwen3_5TextConfig(), None, ("q_proj",)),
        (GraniteMoeHybridConfig(layer_types=["mamba", "attention"], num_hidden_layers=2), 0, ("q_proj",)),
    ],
)
def test_what_an_engine_can_serve_is_accepted(
    config: PreTrainedConfig, num_gpus: float | None, targets: tuple[str, ...]
) -> None:
    check_servable(base(num_gpus, *targets), config)


def test_the_parser_that_a_family_needs_is_accepted() -> None:
    chosen = {"engine": {"num_gpus": 1, "tool_call_parser": "openai"}}
    check_servable(BaseModelConfig.model_validate({"name": "x", "path": "x", **chosen}), GptOssConfig())


@pytest.mark.parametrize("max_model_len", [4096, 4097])
def test_a_window_that_differs_by_one_token_is_accepted_where_no_sequence_leaves_it(max_model_len: int) -> None:
    settings = {"name": "x", "path": "x", "max_model_len": max_model_len, "engine": {"num_gpus": 1}}
    named, config = BaseModelConfig.model_validate(settings), Cohere2Config(sliding_window=4096)
    if max_model_len == 4096:
        check_servable(named, config)
    else:
        with pytest.raises(PolicyError, match="one token farther"):
            check_servable(named, config)
