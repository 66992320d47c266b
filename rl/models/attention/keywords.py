"""Keywords that the layers of a model pass to an attention function: none may change the result and be ignored.

Families add their own, like soft caps and sinks. An attention function takes those that it implements by name, and
hands the others to `refuse_unknown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_WITHOUT_EFFECT = {
    "sliding_window",  # the mask has it
    "position_ids",  # applied to queries and keys before
    "is_causal",  # the mask says it
    "cu_seq_lens_q",  # boundaries of sequences, which the mask has too
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "cache_position",
}


def refuse_unknown(module: nn.Module, keywords: Mapping[str, Any]) -> None:
    """Raise NotImplementedError if a layer passes something that may change its attention."""
    if unknown := [name for name, value in keywords.items() if value is not None and name not in _WITHOUT_EFFECT]:
        raise NotImplementedError(f"{type(module).__name__} asks for {', '.join(unknown)} in its attention.")
