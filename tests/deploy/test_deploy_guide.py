"""Files, arithmetic and limits in docs/deploy.md are correct."""

import re

import torch
from paths import ROOT
from peft import LoraConfig, get_peft_model
from public_models import QWEN3_4B
from transformers import Qwen3ForCausalLM

from tandem.cluster.config import CoordinatorConfig, LimitsConfig
from tandem.cluster.memory.plan import ALONE
from tandem.rl.settings import LoraSettings

GUIDE = (ROOT / "docs/deploy.md").read_text()


def test_files_in_its_commands_exist():
    named = re.findall(r"\bdeploy/[\w./-]+\.yaml|\bdeploy/Dockerfile", GUIDE)
    assert len(set(named)) >= 7
    for path in named:
        assert (ROOT / path).is_file(), path


def test_the_arithmetic_of_sizes():
    with torch.device("meta"):
        model = Qwen3ForCausalLM(QWEN3_4B)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        targets = list(LoraSettings().target_modules)
        policy = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    num_lora = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    assert num_lora == 16 * 57_344 * 36
    kv_bytes = 2 * 36 * 8 * 128 * 2
    for shown, value in {
        "4.02 · 10⁹ parameters": num_parameters / 1e9,
        "| 8.0 GB |": 2 * num_parameters / 1e9,
        "| 33.0 · 10⁶ |": num_lora / 1e6,
        "| 0.53 GB |": 16 * num_lora / 1e9,
        "| 1.5 GB at 8,192 tokens": 2 * 36 * 2560 * 8192 / 1e9,
        "| 0.07 GB |": 2 * num_lora / 1e9,
        "| 147,456 B |": kv_bytes,
        "12 B × LoRA parameters, 0.4 GB here": 12 * num_lora / 1e9,
    }.items():
        assert shown in GUIDE
        number = re.sub(r"12 B × LoRA parameters, ", "", shown).replace(",", "")
        text = re.search(r"\d+(\.\d+)?", number)[0]
        assert float(text) == round(value, len(text.partition(".")[2])), (shown, value)
    assert re.search(r"400,000\s+tokens, or 49 sequences of 8,192", GUIDE)
    assert 60e9 // kv_bytes // 8192 == 49 and 400_000 < 60e9 / kv_bytes < 410_000


def test_its_limits_are_the_defaults():
    assert ALONE == 0.9 and "`gpu_memory_utilization: 0.9`" in GUIDE
    assert LimitsConfig().max_payload_bytes == 1 << 30 and "1 GiB" in GUIDE
    for field in ("stop_grace_s", "lease_s"):
        assert field in CoordinatorConfig.model_fields and field in GUIDE
