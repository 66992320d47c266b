"""The LoRA adapter that a policy version consists of: its parameters, their names and their initial values.

Adapter tensors are named as in PEFT's adapter_model.safetensors, are float32 whatever the base model's dtype is, and
come in pairs per adapted linear layer: lora_A [r, in] and lora_B [out, r]; the layer adds (alpha / r) B A x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PeftType, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from tandem.rl.base_config import check_config, first_sentence, read_config
from tandem.rl.base_weights import empty_model
from tandem.rl.errors import PolicyError
from tandem.rl.settings import LoraSettings

_ADAPTER_NAME = "default"


def peft_config(lora: LoraSettings) -> LoraConfig:
    """Return PEFT's configuration. PEFT takes a fractional alpha too, although it declares int."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,  # type: ignore[arg-type]
        target_modules=list(lora.target_modules),
        lora_dropout=0.0,
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )


def add_adapter(model: PreTrainedModel, lora: LoraSettings) -> PeftModel:
    """Freeze `model` and add trainable float32 LoRA weights. Raises PolicyError for missing target modules."""
    last_parts = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [target for target in lora.target_modules if target not in last_parts]
    if missing:
        raise PolicyError(
            f"target_modules names {', '.join(missing)}, which {type(model).__name__} does not have. "
            f"Set it to names of this model's linear layers."
        )
    try:
        config = peft_config(lora)
        config.exclude_modules = _outside_decoder(model, lora.target_modules) or None
        wrapped = get_peft_model(model, config, adapter_name=_ADAPTER_NAME, autocast_adapter_dtype=True)
    except ValueError as error:
        raise PolicyError(
            f"{type(model).__name__} can't be adapted at {', '.join(lora.target_modules)}: {first_sentence(error)} "
            f"Set target_modules to other linear layers."
        ) from error
    others = [name for name in adapter_parameters(wrapped) if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if others or base_model(wrapped).get_output_embeddings() in _adapted_layers(wrapped):
        raise PolicyError(
            "target_modules may name only linear layers inside the transformer, not its embedding or output layer."
        )
    return wrapped


def _outside_decoder(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Return the modules outside the language model, like those of an image encoder, with names that it uses too."""
    inside = {id(module): name.rpartition(".")[2] for name, module in model.get_decoder().named_modules()}
    shared = set(targets) & set(inside.values())
    return [
        name for name, module in model.named_modules() if id(module) not in inside and name.rpartition(".")[2] in shared
    ]


def base_model(wrapped: PeftModel) -> PreTrainedModel:
    """Return the model inside `wrapped`, with the adapter in its layers."""
    model = wrapped.get_base_model()
    assert isinstance(model, PreTrainedModel)
    return model


def adapter_parameters(wrapped: PeftModel) -> dict[str, nn.Parameter]:
    """Return the trainable parameters under their PEFT names, sorted by name."""
    trainable = {name: parameter for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    return {name.replace(f".{_ADAPTER_NAME}", ""): trainable[name] for name in sorted(trainable)}


def adapter_config(lora: LoraSettings) -> dict[str, Any]:
    """Return the adapter_config.json for PEFT and vLLM.

    It names no base model, so an adapter has the same bytes wherever its base model is stored.
    """
    config = peft_config(lora)
    config.inference_mode = True
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return {**plain, "task_type": TaskType.CAUSAL_LM.value, "peft_type": PeftType.LORA.value}


def initial_state(shapes: Mapping[str, torch.Size], lora: LoraSettings) -> dict[str, Tensor]:
    """Return version 0: A uniform in +-1/sqrt(in) from the seed (PEFT's default distribution), B zero."""
    generator = torch.Generator().manual_seed(lora.seed)
    state = {}
    for name in sorted(shapes):
        tensor = torch.zeros(shapes[name], dtype=torch.float32)
        if name.endswith(".lora_A.weight"):
            bound = 1 / math.sqrt(tensor.shape[1])
            tensor.uniform_(-bound, bound, generator=generator)
        state[name] = tensor
    return state


def initial_adapter(path: str | Path, lora: LoraSettings, max_length: int | None = None) -> dict[str, Tensor]:
    """Return version 0 on the base model at `path`, as `Policy.load` makes it, without loading weights.

    Raises PolicyError if the model's configuration alone shows that `Policy.load` would reject it.
    """
    config = read_config(path)
    check_config(config, max_length)
    with torch.device("meta"):
        wrapped = add_adapter(empty_model(config), lora)
    return initial_state({name: parameter.shape for name, parameter in adapter_parameters(wrapped).items()}, lora)


def _adapted_layers(wrapped: PeftModel) -> list[nn.Module]:
    return [module for module in wrapped.modules() if hasattr(module, "lora_A")]
