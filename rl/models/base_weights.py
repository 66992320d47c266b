"""The weights of a base model: loaded completely, or not at all.

They are read tensor by tensor in the wanted dtype, each to where it stays. So the main memory never has more of them
than a few tensors, unless the device is the CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from tandem.rl.errors import PolicyError
from tandem.rl.models.attention.masks import Attention, transformers_name
from tandem.rl.models.base_config import first_sentence
from tandem.rl.models.sharding import Shards

EXPERTS = "grouped_mm"
"""How transformers multiplies the experts of a mixture: one grouped product for all of them. Exact, the fastest on a
CPU (`benchmarks/LOG.md`), and a single kernel on CUDA."""


def load_model(
    path: str | Path,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attention: Attention,
    device: torch.device,
    shards: Shards | None = None,
) -> PreTrainedModel:
    """Load the model on the device, or with `shards` this learner's part of its layers.

    Raises PolicyError for a family that isn't a causal language model, and for files that lack weights: transformers
    would fill these with random numbers and only log it.
    """

    def load(place: torch.device) -> Any:
        return _auto_class(config).from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=transformers_name(attention),
            output_loading_info=True,
            device_map={"": place},
        )

    try:
        if shards is None:
            model, report = load(device)
        else:
            with shards.collecting() as parts, _one_tensor_at_a_time():
                model, report = load(torch.device("cpu"))
    except (ValueError, ImportError) as error:
        raise _unsupported(config, error) from error
    if missing := sorted(report["missing_keys"]):
        raise PolicyError(
            f"The files of {path} lack {len(missing)} weights of {type(model).__name__}, the first is {missing[0]}. "
            f"Download them again, or use a checkpoint of the language model."
        )
    assert isinstance(model, PreTrainedModel)
    if model._can_set_experts_implementation():
        model.set_experts_implementation(EXPERTS)
    if shards is not None:
        shards.apply(model, parts)
    return model


def load_whole(path: str | Path, config: PreTrainedConfig) -> PreTrainedModel:
    """Load the model on the CPU in the dtype of its files, to be changed and saved. Raises PolicyError."""
    try:
        model: PreTrainedModel = _auto_class(config).from_pretrained(path, config=config, dtype="auto")
    except (ValueError, ImportError) as error:
        raise _unsupported(config, error) from error
    return model


def takes_attention_functions(model: PreTrainedModel) -> bool:
    """Return whether the family calls attention functions that are registered by name.

    Some do, and have the table of functions in their module, but don't declare it.
    """
    return model._supports_attention_backend or hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS")


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model without weights, made on torch's default device. Raises PolicyError as `load_model` does."""
    try:
        model: PreTrainedModel = _auto_class(config).from_config(config)
    except (ValueError, ImportError) as error:
        raise _unsupported(config, error) from error
    return model


def _auto_class(config: PreTrainedConfig) -> Any:
    """Return transformers' class that finds the model's class: that of the whole checkpoint, if it is multimodal.

    vLLM serves the architecture that the configuration names, and adapters have the names of layers in it. So the
    language model is trained as a part of that, too, even where transformers could load it alone.
    """
    whole: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    is_named = whole is not None and whole.__name__ in (config.architectures or ())
    if whole is not None and (is_named or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


@contextmanager
def _one_tensor_at_a_time() -> Iterator[None]:
    """Keep transformers' threads from reading ahead in the block: they would hold whole weights in main memory."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _unsupported(config: PreTrainedConfig, error: Exception) -> PolicyError:
    return PolicyError(
        f"{config.model_type} can't be loaded as a causal language model ({first_sentence(error)}) "
        f"Use a decoder-only model."
    )
