"""The configuration of a base model as training needs it: its text part, checked before any weight is loaded.

A multimodal model keeps the configuration of its language model one level below. Only that level describes the layers
that are trained, so nothing here or elsewhere reads the top level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from tandem.rl.errors import PolicyError

_KINDS_OF_LAYERS = ("layer_types", "layers_block_type", "block_types", "attention_layers")
_KNOWN_ATTENTION = {"full_attention", "attention", "global", "sliding_attention"}
_RECURRENT = {"linear_attention", "conv"}
HYBRID_FAMILIES = (
    "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text",
    "olmo_hybrid", "bamba", "granitemoehybrid",
)  # fmt: skip
"""Families whose recurrent layers are kept apart at the boundaries of sequences (`recurrent_layers`)."""
_SHAPE = (
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "num_experts", "moe_intermediate_size", "tie_word_embeddings",
)  # fmt: skip
_ROPES_BY_LENGTH = ("dynamic", "longrope")
_SPANS = ("window", "chunk", "local", "topk", "original_max_position")


def read_config(path: str | Path) -> PreTrainedConfig:
    """Return the configuration of the model at `path`. Raises PolicyError for a model that transformers can't read."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
        return config
    except (ValueError, KeyError) as error:  # an unknown family, or one that needs code from its repository
        raise PolicyError(f"The base model {path} can't be read: {first_sentence(error)}") from error


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the part of a configuration that describes the language model. Raises PolicyError if there are several."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError as error:
        raise PolicyError(f"{config.model_type} has no single language model: {first_sentence(error)}") from error


def check_same_shape(config: PreTrainedConfig, served: PreTrainedConfig, path: str) -> None:
    """Raise PolicyError unless the model at `path`, which the engine serves, has the shape of the trained one.

    Then the adapters of one fit the other. Whether it is the same model, only its logprobs tell.
    """
    ours, theirs = text_config(config), text_config(served)
    for key in _SHAPE:
        own, other = getattr(ours, key, None), getattr(theirs, key, None)
        if own != other:
            raise PolicyError(
                f"the engine's weights at {path} have {key} {other}, but the base model has {own}. Set engine.path to "
                "the same model in other precision."
            )


def longest_sequence(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence in tokens that the model has positions for; None if it names no limit."""
    text = text_config(config)
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return next((int(limit) for limit in limits if limit), None)


def check_config(config: PreTrainedConfig, max_length: int | None = None) -> None:
    """Reject models that name layers of their own (recurrent layers, attention in chunks): packed masks replace them.

    `max_length` is that of the longest sequence in use; None: the model's own limit. Raises PolicyError.
    """
    text = text_config(config)
    if config.is_encoder_decoder or text.is_encoder_decoder:
        raise PolicyError(
            f"{config.model_type} is an encoder with a decoder, which can't be trained. Use a decoder-only model."
        )
    supported = _KNOWN_ATTENTION | (_RECURRENT if text.model_type in HYBRID_FAMILIES else set())
    if kinds := attention_kinds(config) - supported:
        raise PolicyError(
            f"{config.model_type} has layers of {', '.join(sorted(kinds))}, which packed sequences don't support. "
            f"Use a base model with causal attention, full or in sliding windows, in every layer."
        )
    longest = max_length or longest_sequence(config)
    for rope in _rope_parameters(text):
        original = rope.get("original_max_position_embeddings") or getattr(text, "max_position_embeddings", None)
        if rope.get("rope_type", rope.get("type")) in _ROPES_BY_LENGTH and (not longest or longest > (original or 0)):
            raise PolicyError(
                f"{config.model_type} scales its positions by the length of a sequence beyond {original} tokens "
                f"({rope.get('rope_type', rope.get('type'))}), which packed sequences don't support. "
                f"Set max_model_len to at most {original}."
            )


def attention_kinds(config: PreTrainedConfig) -> set[str]:
    """Return the kinds of layers that the configuration names; "full_attention" where it names none."""
    text = text_config(config)
    for key in _KINDS_OF_LAYERS:
        if kinds := getattr(text, key, None):
            return {str(kind) for kind in kinds}
    return {"sliding_attention"} if getattr(text, "sliding_window", None) else {"full_attention"}


def shares_prefixes(config: PreTrainedConfig) -> bool:
    """Return whether sequences of a row may share a prefix: the state of a recurrent layer can't branch."""
    return not attention_kinds(config) & _RECURRENT


def attention_spans(config: PreTrainedConfig) -> set[int]:
    """Return every number of tokens that the configuration names as the reach of some attention, or that may be one."""
    values = text_config(config).to_dict()
    for rope in _rope_parameters(text_config(config)):
        values |= rope
    return {
        int(value)
        for key, value in values.items()
        if any(word in key for word in _SPANS) and isinstance(value, int) and not isinstance(value, bool)
    }


def remove_randomness(config: PreTrainedConfig) -> None:
    """Set dropout and router noise to 0, in every part of the model: else the policy in training would differ from the
    one that sampled."""
    for part in _parts(config):
        for key, value in part.to_dict().items():
            if ("drop" in key or "jitter" in key) and isinstance(value, float):
                setattr(part, key, 0.0)


def first_sentence(error: BaseException) -> str:
    """Return the beginning of a library's message, which may have pages of advice for other programs."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.split(". ")[0].rstrip(".")[:300] + "."


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def _rope_parameters(text: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """Return the settings of position embeddings: one mapping, or one for each kind of layer."""
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [value for value in found.values() if isinstance(value, Mapping)]
    return nested or [found]
