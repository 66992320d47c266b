"""The adapter_config.json of PEFT: which LoRA settings it has, and whether it has anything else that would be computed.

Importing this needs neither torch nor PEFT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tandem.rl.checkpoint_files import ADAPTER_CONFIG
from tandem.rl.errors import AdapterError
from tandem.rl.settings import LoraSettings

EXPERTS = "experts"
"""In `target_modules` of the settings: the routed experts, which PEFT adapts by `target_parameters`."""
EXPERT_PARAMETERS = ("experts.gate_up_proj", "experts.down_proj")
MAX_BYTES = 1 << 20
_SETTINGS = ("peft_type", "r", "lora_alpha", "target_modules", "target_parameters")
_WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",  # the model that the version is imported to has its own
    "fan_in_fan_out",  # how the base model stores its weights, which is known
    "inference_mode",
    "lora_dropout",  # of the training before
    "megatron_core",  # read with megatron_config alone, which must be empty
    "peft_version",
    "qalora_group_size",  # read with use_qalora alone, which must be off
    "revision",
)
_EXPECTED: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "task_type": (None, "CAUSAL_LM"),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # others change the base model's weights
}
_EMPTY: tuple[Any, ...] = (None, False, [], {}, "")


def lora_of(config: Mapping[str, Any]) -> LoraSettings:
    """Return the LoRA settings of an adapter_config.json; its seed isn't known.

    Raises AdapterError for a field that would change the computation and that versions here don't have.
    """
    if config.get("peft_type") != "LORA":
        raise _wrong("peft_type", "must be LORA; other methods can't be imported")
    for name, value in config.items():
        if name in _SETTINGS or name in _WITHOUT_EFFECT:
            continue
        allowed = _EXPECTED.get(name, _EMPTY)
        if not any(value == other and type(value) is type(other) for other in allowed):
            raise _wrong(
                name,
                f"is {_shown(value)}, which would change what the adapter computes and isn't supported; it must be "
                f"{' or '.join(map(_shown, allowed[:2]))}, or left out",
            )
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise _wrong("target_modules", "must be a list of the last parts of module names; write the list out")
    # PEFT may write whole names, one for each layer: which tensors there are decides whether all layers are adapted.
    last_parts = dict.fromkeys(target.rpartition(".")[2] for target in targets)
    return _settings(config, [*last_parts, *_experts(config.get("target_parameters"))])


def read_adapter_config(content: bytes) -> dict[str, Any]:
    """Return the fields of an adapter_config.json. Raises AdapterError."""
    if len(content) > MAX_BYTES:
        raise AdapterError(ADAPTER_CONFIG, None, f"is larger than {MAX_BYTES} bytes")
    try:
        config = json.loads(content, parse_constant=_not_finite)
    except (ValueError, RecursionError) as error:
        raise AdapterError(ADAPTER_CONFIG, None, f"isn't JSON: {error}") from None
    if not isinstance(config, dict):
        raise AdapterError(ADAPTER_CONFIG, None, "must be a JSON object, as PEFT writes it")
    return config


def _settings(config: Mapping[str, Any], targets: list[str]) -> LoraSettings:
    numbers = {"r": config.get("r"), "lora_alpha": config.get("lora_alpha")}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(name, "must be a number")
    try:
        return LoraSettings(r=numbers["r"], alpha=numbers["lora_alpha"], target_modules=tuple(targets))
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0]) if fault["loc"] else "target_modules"
        raise _wrong("lora_alpha" if name == "alpha" else name, fault["msg"]) from None


def _experts(parameters: Any) -> list[str]:
    if parameters in _EMPTY:
        return []
    if not isinstance(parameters, list) or sorted(map(str, parameters)) != sorted(EXPERT_PARAMETERS):
        raise _wrong("target_parameters", f"must be {' and '.join(EXPERT_PARAMETERS)}, or left out")
    return [EXPERTS]


def _wrong(field: str, reason: str) -> AdapterError:
    return AdapterError(ADAPTER_CONFIG, field, reason)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _not_finite(constant: str) -> float:
    raise ValueError(f"it has {constant}")
