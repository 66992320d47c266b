"""Base models and modules that vLLM can't serve with LoRA."""

import json

import pytest

from tandem.cluster.engine.lora_support import check_architecture, check_modules, supports_lora


@pytest.fixture
def model_of(tmp_path):
    """Write the configuration of a model, which has no weights, and return its directory."""

    def write(architecture: str, model_type: str) -> str:
        config = {"architectures": [architecture], "model_type": model_type}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("Qwen3ForCausalLM", True), ("LlamaForCausalLM", True), ("MambaForCausalLM", False), ("NoneSuch", None)],
)
def test_vllm_tells_which_families_take_adapters(architecture, expected):
    from vllm.model_executor.models import ModelRegistry

    assert supports_lora(ModelRegistry.models.get(architecture)) is expected


def test_a_family_without_adapters_is_refused_by_name(model_of):
    with pytest.raises(ValueError, match="MambaForCausalLM"):
        check_architecture(model_of("MambaForCausalLM", "mamba"))


def test_a_family_with_adapters_is_taken(model_of):
    check_architecture(model_of("Qwen3ForCausalLM", "qwen3"))


def test_a_module_that_the_engine_would_ignore_is_refused_by_name():
    adapted = ["q_proj", "k_proj", "qkv_proj"]
    check_modules(("q_proj", "k_proj"), adapted, "m")
    with pytest.raises(ValueError, match="no experts in m"):
        check_modules(("q_proj", "experts"), adapted, "m")
