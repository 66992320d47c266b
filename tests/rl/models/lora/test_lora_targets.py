"""Target modules by the parts of a model that are to be trained, in several families."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_families import FULL, LINEAR, MIXTURES, WINDOWED, family
from transformers import PreTrainedConfig

from tandem.rl.errors import PolicyError
from tandem.rl.models.lora.targets import chosen_modules
from tandem.rl.settings import LoraSettings

DEFAULT = LoraSettings().target_modules
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSE = ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("config", "attention", "mlp"),
    [
        (FULL["llama"], ATTENTION, DENSE),
        (WINDOWED["gemma3"], ATTENTION, DENSE),
        (FULL["gpt_neox"], ("query_key_value",), ("dense_h_to_4h", "dense_4h_to_h")),
        (WINDOWED["phi3"], ("qkv_proj", "o_proj"), ("gate_up_proj", "down_proj")),
        (MIXTURES["qwen3_moe"], ATTENTION, ("experts",)),
        (MIXTURES["deepseek_v3"], ("q_a_proj", "kv_b_proj", "o_proj"), ("gate_proj", "experts")),
        (MIXTURES["gpt_oss"], ATTENTION, ("experts",)),
        (family("qwen3_5_text", **LINEAR), ("in_proj_qkv", "out_proj", *ATTENTION), DENSE),
        (family("lfm2", layer_types=["conv", "full_attention"]), ("in_proj", "q_proj"), ("w1", "w2", "w3")),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_parts_of_families(
    tmp_path: Path, config: PreTrainedConfig, attention: tuple[str, ...], mlp: tuple[str, ...]
) -> None:
    config.save_pretrained(tmp_path)
    names = (*mlp, *attention)
    assert chosen_modules(tmp_path, names, train_attn=True, train_mlp=False) == attention
    assert chosen_modules(tmp_path, names, train_attn=False, train_mlp=True) == mlp
    assert chosen_modules(tmp_path, names, train_attn=True, train_mlp=True) == names


def test_something_must_be_left(tmp_path: Path) -> None:
    FULL["llama"].save_pretrained(tmp_path)
    with pytest.raises(PolicyError, match="nothing is asked for"):
        chosen_modules(tmp_path, DEFAULT, train_attn=False, train_mlp=False)
    with pytest.raises(PolicyError, match="none is MLP"):
        chosen_modules(tmp_path, ATTENTION, train_attn=False, train_mlp=True)


def test_a_name_in_both_parts_is_refused(tmp_path: Path) -> None:
    config = family("gpt2", n_embd=64, n_head=4, n_layer=2)
    config.save_pretrained(tmp_path)
    with pytest.raises(PolicyError, match="c_proj names layers of attention and of MLPs"):
        chosen_modules(tmp_path, ("c_attn", "c_proj"), train_attn=True, train_mlp=False)
    assert chosen_modules(tmp_path, ("c_attn", "c_fc"), train_attn=True, train_mlp=False) == ("c_attn",)
