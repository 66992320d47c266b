"""An adapter from outside becomes the state of a policy version: every tensor that the base model has, and no other.

Only safetensors are read, never pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tandem.rl.checkpoint_files import ADAPTER, ADAPTER_CONFIG
from tandem.rl.errors import AdapterError
from tandem.rl.models.lora.adapter_config import MAX_BYTES, lora_of, read_adapter_config
from tandem.rl.settings import LoraSettings

_DTYPES = {"F32", "F16", "BF16"}
NUM_NAMED = 3
"""Tensors that a message names of many."""


def read_import(
    config_file: Path, weights_file: Path, shapes: Mapping[str, torch.Size], lora: LoraSettings
) -> dict[str, Tensor]:
    """Return the adapter in PEFT's files as float32, under PEFT's names. Raises AdapterError.

    `shapes` are those of an adapter with the settings `lora` on the base model.
    """
    with open(config_file, "rb") as file:
        found = lora_of(read_adapter_config(file.read(MAX_BYTES + 1)))
    _check_settings(found, lora)
    try:
        with safe_open(weights_file, framework="pt") as tensors:
            _check_header(tensors, shapes)
            return {name: _finite(name, tensors.get_tensor(name).float()) for name in sorted(shapes)}
    except SafetensorError as error:
        raise AdapterError(
            ADAPTER, None, f"isn't a safetensors file ({error}); save the adapter with safe_serialization=True"
        ) from None


def _check_settings(found: LoraSettings, lora: LoraSettings) -> None:
    if found.fits(lora):
        return
    differing = [
        (name, given, own)
        for name, given, own in (
            ("r", found.r, lora.r),
            ("lora_alpha", found.alpha, lora.alpha),
            ("target_modules", sorted(set(found.target_modules)), sorted(set(lora.target_modules))),
        )
        if given != own
    ]
    name, given, own = differing[0]
    raise AdapterError(
        ADAPTER_CONFIG,
        name,
        f"is {_listed(given)}, but this model's LoRA settings have {_listed(own)}. Import the adapter to a model that "
        "was registered with its settings (lora).",
    )


def _check_header(tensors: Any, shapes: Mapping[str, torch.Size]) -> None:
    names = set(tensors.keys())
    if missing := sorted(shapes.keys() - names):
        raise AdapterError(ADAPTER, _some(missing), "is missing; the base model has modules of these names")
    if unknown := sorted(names - shapes.keys()):
        raise AdapterError(
            ADAPTER, _some(unknown), "isn't a tensor of an adapter on this base model with these settings"
        )
    for name, shape in shapes.items():
        part = tensors.get_slice(name)
        if part.get_dtype() not in _DTYPES:
            raise AdapterError(ADAPTER, name, f"has dtype {part.get_dtype()}; it must be F32, F16 or BF16")
        if tuple(part.get_shape()) != tuple(shape):
            found, wanted = list(part.get_shape()), list(shape)
            raise AdapterError(ADAPTER, name, f"has shape {found}; on this base model it must be {wanted}")


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not tensor.isfinite().all():
        raise AdapterError(ADAPTER, name, "has numbers that aren't finite")
    return tensor


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}"
