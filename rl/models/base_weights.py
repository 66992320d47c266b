"""The weights of a base model: loaded completely, or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tandem.rl.errors import PolicyError
from tandem.rl.models.attention import Attention, transformers_name
from tandem.rl.models.base_config import first_sentence


def load_model(path: str | Path, config: PreTrainedConfig, dtype: torch.dtype, attention: Attention) -> PreTrainedModel:
    """Load the model on the CPU.

    Raises PolicyError for a family that isn't a causal language model, and for files that lack weights: transformers
    would fill these with random numbers and only log it.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, attn_implementation=transformers_name(attention), output_loading_info=True
        )
    except (ValueError, ImportError) as error:
        raise _unsupported(config, error) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise PolicyError(
            f"The files of {path} lack {len(missing)} weights of {type(model).__name__}, the first is {missing[0]}. "
            f"Download them again, or use a checkpoint of the language model."
        )
    assert isinstance(model, PreTrainedModel)
    return model


def takes_attention_functions(model: PreTrainedModel) -> bool:
    """Return whether the family calls attention functions that are registered by name.

    Some do, and have the table of functions in their module, but don't declare it.
    """
    return model._supports_attention_backend or hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS")


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model without weights, made on torch's default device. Raises PolicyError as `load_model` does."""
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except (ValueError, ImportError) as error:
        raise _unsupported(config, error) from error
    return model


def _unsupported(config: PreTrainedConfig, error: Exception) -> PolicyError:
    return PolicyError(
        f"{config.model_type} can't be loaded as a causal language model ({first_sentence(error)}) "
        f"Use a decoder-only model."
    )
