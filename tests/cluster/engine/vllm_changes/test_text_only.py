"""Multimodal models in vLLM: their classes are imported without torchvision, and their text has a head in float32."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import is_torchvision_available

from tandem.cluster.engine.setup.lora_support import check_architecture
from tandem.cluster.engine.vllm_changes.text_only import (
    import_models_without_torchvision,
    override_text_part,
    torchvision_absent,
)

OVERRIDES = {"head_dtype": "float32", "rope_theta": 1e4}
needs_absence = pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed here")


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("Gemma3ForConditionalGeneration", "gemma3"),
        ("Gemma4ForConditionalGeneration", "gemma4"),
        ("LlavaForConditionalGeneration", "llava"),
        ("Mistral3ForConditionalGeneration", "mistral3"),
        ("Qwen2VLForConditionalGeneration", "qwen2_vl"),
        ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"),
        ("Qwen3VLForConditionalGeneration", "qwen3_vl"),
        ("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe"),
        ("Qwen3_5ForConditionalGeneration", "qwen3_5"),
        ("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe"),
        ("Qwen3_5ForCausalLM", "qwen3_5_text"),
    ],
)
def test_vllm_imports_and_inspects_a_family_of_multimodal_models_here(architecture: str, model_type: str) -> None:
    from vllm.model_executor.models import ModelRegistry

    import_models_without_torchvision()
    check_architecture(AutoConfig.for_model(model_type, architectures=[architecture]))
    if find_spec("torchvision") is None:  # otherwise vLLM asks another process
        assert ModelRegistry.models[architecture].inspect_model_cls().is_text_generation_model


@needs_absence
def test_names_of_an_absent_package_can_be_imported_and_not_called() -> None:
    with torchvision_absent():
        from torchvision import transforms
        from torchvision.transforms.v2 import functional

        assert functional.InterpolationMode.BICUBIC is not None
        assert transforms.Compose | None and None | transforms.Compose
        with pytest.raises(ModuleNotFoundError, match=r"torchvision.transforms.v2.functional.resize .*text alone"):
            functional.resize()


@needs_absence
def test_the_package_is_absent_again_and_transformers_knows_it() -> None:
    with torchvision_absent():
        assert "torchvision" in sys.modules and not is_torchvision_available()
    assert find_spec("torchvision") is None and not [name for name in sys.modules if name.startswith("torchvision")]


def composite() -> PreTrainedConfig:
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return AutoConfig.for_model("gemma3", text_config=small | {"num_key_value_heads": 1}, vision_config=small)


def test_the_head_of_a_multimodal_model_is_float32_where_vllm_makes_it(tmp_path: Path) -> None:
    from vllm.config import ModelConfig, VllmConfig

    import_models_without_torchvision()
    config = composite()
    config.architectures = ["Gemma3ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    dtypes = []
    for overrides in (OVERRIDES, override_text_part(OVERRIDES, config)):
        model = ModelConfig(
            model=str(tmp_path), dtype="bfloat16", hf_overrides=overrides, skip_tokenizer_init=True, max_model_len=64
        )
        whole = VllmConfig(model_config=model)
        inner = whole.with_hf_config(model.hf_config.text_config, architectures=["Gemma3ForCausalLM"])
        dtypes.append(str(inner.model_config.head_dtype))
    assert dtypes == ["torch.bfloat16", "torch.float32"]


def test_only_the_head_is_overridden_below_and_a_text_model_has_nothing_below() -> None:
    assert override_text_part(OVERRIDES, composite()) == OVERRIDES | {"text_config": {"head_dtype": "float32"}}
    assert override_text_part(OVERRIDES, AutoConfig.for_model("qwen3")) == OVERRIDES
    assert override_text_part({}, composite()) == {}
    own = {"text_config": {"head_dtype": "model"}}
    assert override_text_part(OVERRIDES | own, composite()) == OVERRIDES | own
