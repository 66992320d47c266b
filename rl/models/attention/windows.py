"""Sliding windows: which layers of a model see only the latest positions, and how many.

    token q sees token k if and only if the row's rule says so, and position(q) - position(k) < window.

Positions decide, not indices in the row: a branch continues its parent's positions wherever it stands.
"""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedConfig

from tandem.rl.models.base_config import attention_kinds, text_config

Windows = Mapping[str, int | None]
"""The window of each kind of layer, in tokens, the query included; None: all."""
_SLIDING = "sliding_attention"
FULL: Windows = {"full_attention": None}


def attention_windows(config: PreTrainedConfig) -> Windows:
    """Return the windows of a model's layers: of each kind by name, if some kind has a window."""
    window = getattr(text_config(config), "sliding_window", None)
    kinds = attention_kinds(config)
    if _SLIDING not in kinds:
        return FULL
    return {kind: window if kind == _SLIDING else None for kind in sorted(kinds)}
