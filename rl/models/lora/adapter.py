"""The LoRA adapter that a policy version consists of: its parameters, their names and their initial values.

Adapter tensors are named as in PEFT's adapter_model.safetensors, are float32 whatever the base model's dtype is, and
come in pairs per adapted linear layer: lora_A [r, in] and lora_B [out, r]; the layer adds (alpha / r) B A x. PEFT
defines the names and the configuration file; `lora_linear` computes, and `lora_experts` for the experts of a mixture.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftType, TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel

from tandem.rl.errors import PolicyError
from tandem.rl.models.base_config import check_config, read_config
from tandem.rl.models.base_weights import empty_model
from tandem.rl.models.lora.experts import PARAMETERS, TARGET, LoraExperts, is_fused_experts
from tandem.rl.models.lora.linear import LINEAR_LAYERS, LoraLinear, share_inputs
from tandem.rl.settings import LoraSettings

logger = logging.getLogger(__name__)
_PEFT_PREFIX = "base_model.model"


def peft_config(lora: LoraSettings) -> LoraConfig:
    """Return PEFT's configuration. PEFT takes a fractional alpha too, although it declares int."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,  # type: ignore[arg-type]
        target_modules=[target for target in lora.target_modules if target != TARGET],
        target_parameters=list(PARAMETERS) if TARGET in lora.target_modules else None,
        lora_dropout=0.0,
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )


def add_adapter(model: PreTrainedModel, lora: LoraSettings) -> dict[str, nn.Parameter]:
    """Freeze `model`, add LoRA weights to its decoder, and return them under their PEFT names, sorted by name.

    Layers of the same name outside the language model, like those of an image encoder, stay as they are. Raises
    PolicyError for target modules that are missing or aren't linear layers.
    """
    model.requires_grad_(False)
    decoder, last_parts = model.get_decoder(), {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if missing := [target for target in lora.target_modules if target not in last_parts]:
        instead = "names of this model's linear layers"
        if TARGET in last_parts and TARGET not in lora.target_modules:
            instead += f", and add {TARGET} to adapt the projections of its experts"
        raise PolicyError(
            f"target_modules names {', '.join(missing)}, which {type(model).__name__} does not have. "
            f"Set it to {instead}."
        )
    layers = {
        name: module for name, module in decoder.named_modules() if name.rpartition(".")[2] in lora.target_modules
    }
    absent = set(lora.target_modules) - {name.rpartition(".")[2] for name in layers}
    wrong = sorted({type(module).__name__ for module in layers.values() if not _can_adapt(module)})
    if absent or wrong:
        raise PolicyError(
            f"target_modules may name only linear layers and fused experts inside the transformer, not its embedding, "
            f"output layer or router: "
            f"{type(model).__name__} has {', '.join([*sorted(absent), *wrong])} elsewhere or of another kind."
        )
    _report_experts(model, layers, lora)
    return _replace(model, set(map(id, layers.values())), lora)


def detach_adapter(model: PreTrainedModel) -> Callable[[], None]:
    """Take the adapter out of the model, which then takes another. Return a function that puts this one back.

    Its parameters keep their values. The other one must be taken out before.
    """
    places = [
        (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLinear | LoraExperts)
    ]
    for parent, own_name, module in places:
        setattr(parent, own_name, module.base)

    def put_back() -> None:
        for parent, own_name, module in places:
            setattr(parent, own_name, module)

    return put_back


def adapter_shapes(path: str | Path, lora: LoraSettings) -> dict[str, torch.Size]:
    """Return the tensors of an adapter on the base model at `path`, without loading weights. Raises PolicyError."""
    with torch.device("meta"):
        parameters = add_adapter(empty_model(read_config(path)), lora)
    return {name: parameter.shape for name, parameter in parameters.items()}


def _can_adapt(module: nn.Module) -> bool:
    return isinstance(module, LINEAR_LAYERS) or is_fused_experts(module)


def _report_experts(model: PreTrainedModel, adapted: Mapping[str, nn.Module], lora: LoraSettings) -> None:
    """Log which layers of a mixture of experts are adapted if its experts aren't: names of layers don't show it."""
    num_experts = sum(is_fused_experts(module) for module in model.modules())
    if num_experts and TARGET not in lora.target_modules:
        counts = Counter(name.rpartition(".")[2] for name in adapted)
        logger.warning(
            "target_modules adapts %s of %s. The routed experts of %d layers stay as they are: add %s to adapt them.",
            ", ".join(f"{number} {target}" for target, number in sorted(counts.items())),
            type(model).__name__,
            num_experts,
            TARGET,
        )


def _replace(model: PreTrainedModel, targets: set[int], lora: LoraSettings) -> dict[str, nn.Parameter]:
    parameters: dict[str, nn.Parameter] = {}
    for name, module in list(model.named_modules()):
        if id(module) in targets:
            parent, _, own_name = name.rpartition(".")
            adapted = _adapted(module, lora)
            setattr(model.get_submodule(parent), own_name, adapted)
            for part, factors in _factors(name, adapted).items():
                parameters[f"{_PEFT_PREFIX}.{part}.lora_A.weight"] = factors.lora_A
                parameters[f"{_PEFT_PREFIX}.{part}.lora_B.weight"] = factors.lora_B
    share_inputs(model)
    return {name: parameters[name] for name in sorted(parameters)}


def _adapted(module: nn.Module, lora: LoraSettings) -> LoraLinear | LoraExperts:
    scale = lora.alpha / lora.r
    if isinstance(module, LINEAR_LAYERS):
        return LoraLinear(module, lora.r, scale)
    return LoraExperts(module, lora.r, scale)


def _factors(name: str, adapted: LoraLinear | LoraExperts) -> dict[str, Any]:
    """Return what has A and B, by PEFT's name: it counts fused experts as two adapters around each other."""
    if isinstance(adapted, LoraExperts):
        return {f"{name}.base_layer": adapted.gate_up, name: adapted.down}
    return {name: adapted}


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
    check_config(read_config(path), max_length)
    return initial_state(adapter_shapes(path, lora), lora)
