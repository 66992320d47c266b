"""A checkpoint with a merged adapter computes what PEFT computes with the adapter beside its base model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_families import family, save
from peft import PeftModel
from safetensors.torch import save_file
from small_models import randomise_adapter, save_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, Qwen3ForCausalLM

from tandem.rl.errors import PolicyError
from tandem.rl.models.lora.merging import write_merged
from tandem.rl.policy import Policy
from tandem.rl.settings import LoraSettings
from tandem.rl.tiny.model import TINY_MODEL_DIR

TOKENS = torch.arange(3, 60)[None]
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def write_adapter(base: Path, directory: Path, lora: LoraSettings) -> Path:
    policy = Policy.load(base, "cpu", lora=lora, max_length=128)
    randomise_adapter(policy)
    directory.mkdir()
    save_file(policy.adapter_state(), directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(policy.adapter_config()))
    return directory


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(TOKENS).logits.float()


@pytest.mark.parametrize("name", ["tied", "untied", "transposed layers", "experts", "tiny"])
def test_a_merged_checkpoint_has_the_logits_of_peft(name: str, tmp_path: Path) -> None:
    lora = LoraSettings(r=3, alpha=9)
    base = tmp_path / "base"
    match name:
        case "tied" | "untied":
            save_model(base, Qwen3ForCausalLM, tie_word_embeddings=name == "tied")
        case "transposed layers":
            lora = LoraSettings(r=3, alpha=9, target_modules=("c_attn", "c_fc"))
            GPT2LMHeadModel(
                AutoConfig.for_model("gpt2", n_layer=2, n_embd=64, n_head=4, vocab_size=199)
            ).save_pretrained(base)
        case "experts":
            lora = LoraSettings(r=3, alpha=9, target_modules=("q_proj", "experts"))
            save(family("qwen3_moe", **MIXTURE), base)
        case "tiny":
            base = TINY_MODEL_DIR
    adapter = write_adapter(base, tmp_path / "adapter", lora)
    write_merged(str(base), adapter, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(base)
    without, expected = logits(plain), logits(PeftModel.from_pretrained(plain, adapter))
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert (found - without).abs().max() > 0.1, "the adapter changes something"
    if name == "tiny":
        ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "merged", base))
        assert ours.chat_template == theirs.chat_template and ours("seven")["input_ids"] == theirs("seven")["input_ids"]


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", LoraSettings(r=3, alpha=9))
    exact = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).bfloat16().float(), adapter)
    exact = exact.merge_and_unload()
    AutoModelForCausalLM.from_pretrained(base).bfloat16().save_pretrained(tmp_path / "half")
    write_merged(str(tmp_path / "half"), adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    wanted = dict(exact.named_parameters())
    for name, weight in merged.named_parameters():
        assert weight.dtype == torch.bfloat16
        torch.testing.assert_close(weight.float(), wanted[name].bfloat16().float(), rtol=2**-8, atol=1e-6)


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", LoraSettings(r=3))
    other = save_model(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(PolicyError, match="does not fit"):
        write_merged(str(other), adapter, tmp_path / "merged")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(PolicyError, match="quantized"):
        write_merged(str(base), adapter, tmp_path / "merged")
