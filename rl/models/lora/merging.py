"""A base model with an adapter added into its weights: a checkpoint that needs no LoRA.

    W' = W + (alpha / r) B A      (Hu et al. 2021, arXiv:2106.09685, equation 3)

The sum is computed in float32 and rounded once, to the dtype of the base model's files.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tandem.rl.checkpoint_files import ADAPTER, ADAPTER_CONFIG
from tandem.rl.errors import PolicyError
from tandem.rl.models.base_config import read_config
from tandem.rl.models.base_weights import load_whole
from tandem.rl.models.lora.adapter import add_adapter, detach_adapter
from tandem.rl.models.lora.adapter_config import lora_of, read_adapter_config
from tandem.rl.models.lora.experts import LoraExperts
from tandem.rl.models.lora.linear import LoraLinear
from tandem.rl.policy import check_tensors

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")


def write_merged(base_path: str, adapter: Path, directory: Path) -> None:
    """Write the base model with the adapter's weights added, its tokenizer and chat template, to a directory.

    `base_path` is a local directory or a Hugging Face id. Raises PolicyError for a base model whose files are
    quantized, and for an adapter of another one; AdapterError for one that isn't LoRA.
    """
    config = read_config(base_path)
    if getattr(config, "quantization_config", None) is not None:
        raise PolicyError(
            f"The files of {base_path} are quantized (quantization_config), and an adapter can't be added to such "
            "weights without loss. Name the base model in full precision with --base."
        )
    model = load_whole(base_path, config)
    merge(model, adapter)
    model.save_pretrained(directory)
    _copy_the_rest(base_path, directory)


@torch.no_grad()
def merge(model: PreTrainedModel, adapter: Path) -> None:
    """Add the adapter in PEFT's files into the model's weights."""
    lora = lora_of(read_adapter_config((adapter / ADAPTER_CONFIG).read_bytes()))
    parameters = add_adapter(model, lora)
    tensors = load_file(adapter / ADAPTER)
    check_tensors("adapter", {name: parameter.shape for name, parameter in parameters.items()}, tensors)
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
    adapted = [module for module in model.modules() if isinstance(module, LoraLinear | LoraExperts)]
    for module in adapted:
        if isinstance(module, LoraLinear):
            weight = module.weight  # of GPT-2's layers a transposed view
            weight.copy_(weight.float() + module.scale * (module.lora_B.float() @ module.lora_A.float()))
        else:
            _merge_experts(module)
    detach_adapter(model)


def _merge_experts(experts: LoraExperts) -> None:
    for name, factors in (("gate_up_proj", experts.gate_up), ("down_proj", experts.down)):
        weight = getattr(experts.base, name)  # [E, out, in], or transposed
        down = factors.lora_A.float().unflatten(0, (factors.num_experts, -1))  # [E, r, in]
        up = factors.lora_B.float().unflatten(1, (-1, factors.num_experts)).permute(2, 0, 1)  # [E, out, r]
        delta = experts.scale * (up @ down)
        weight.copy_(weight.float() + (delta.transpose(1, 2) if experts.base.is_transposed else delta))


def _copy_the_rest(base_path: str, directory: Path) -> None:
    """Copy the files of the base model that aren't weights and that transformers hasn't written: its tokenizer."""
    for file in sorted(_local(base_path).iterdir()):
        is_there = (directory / file.name).exists()
        if file.is_file() and not is_there and not file.name.startswith(".") and not file.name.endswith(_WEIGHTS):
            shutil.copyfile(file, directory / file.name)


def _local(base_path: str) -> Path:
    if Path(base_path).is_dir():
        return Path(base_path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(base_path, ignore_patterns=[f"*{ending}" for ending in _WEIGHTS]))
