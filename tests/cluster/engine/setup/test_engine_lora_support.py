"""Base models and modules that vLLM can't serve with LoRA."""

import pytest
from transformers import AutoConfig, PreTrainedConfig

from tandem.cluster.engine.setup.lora_support import check_architecture, check_modules, takes_adapters


def config_of(architecture: str, model_type: str, **settings) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, architectures=[architecture], **settings)


@pytest.mark.parametrize(
    ("architecture", "expected"), [("Qwen3ForCausalLM", True), ("LlamaForCausalLM", True), ("MambaForCausalLM", False)]
)
def test_vllm_tells_which_families_take_adapters(architecture, expected):
    from vllm.model_executor.models import ModelRegistry

    assert takes_adapters(architecture, ModelRegistry.models[architecture]) is expected


def test_a_family_without_adapters_is_refused_by_name():
    with pytest.raises(ValueError, match="MambaForCausalLM with LoRA"):
        check_architecture(config_of("MambaForCausalLM", "mamba"))


def test_a_family_whose_recurrent_layers_vllm_does_not_have_is_refused_by_name():
    with pytest.raises(ValueError, match="no BambaForCausalLM"):
        check_architecture(config_of("BambaForCausalLM", "bamba"))


def test_a_family_that_needs_another_package_is_refused_by_the_names_of_both(monkeypatch):
    from vllm.model_executor.models import ModelRegistry

    class Unimportable:
        def load_model_cls(self):
            raise ModuleNotFoundError("No module named 'timm'")

    monkeypatch.setitem(ModelRegistry.models, "KananaVForConditionalGeneration", Unimportable())
    with pytest.raises(ValueError, match=r"KananaVForConditionalGeneration: No module named 'timm'"):
        check_architecture(config_of("KananaVForConditionalGeneration", "qwen3"))


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("Qwen3ForCausalLM", "qwen3"),
        ("NoneSuchForCausalLM", "qwen3"),
        ("GraniteMoeHybridForCausalLM", "granitemoehybrid"),
    ],
)
def test_a_family_with_adapters_or_transformers_own_code_is_accepted(architecture, model_type):
    check_architecture(config_of(architecture, model_type))


def test_a_module_that_the_engine_would_ignore_is_refused_by_name():
    adapted = ["q_proj", "k_proj", "qkv_proj"]
    check_modules(("q_proj", "k_proj"), adapted, "m")
    with pytest.raises(ValueError, match="no experts in m"):
        check_modules(("q_proj", "experts"), adapted, "m")
