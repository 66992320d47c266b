"""A base model as its authors released it: the reference for whatever training computes in another way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedConfig, PreTrainedModel

from tandem.rl.models.base_config import text_config

_MAKE_OWN_MASK = ("sdpa", "eager")


@contextmanager
def as_released(causal_lm: PreTrainedModel) -> Iterator[None]:
    """In the block, the model runs as for inference, and with attention that makes its own causal mask."""
    was_training, before = causal_lm.training, causal_lm.config._attn_implementation
    causal_lm.eval()
    exact = _exact_attention(causal_lm, before)
    if exact != before:
        causal_lm.set_attn_implementation(exact)
    try:
        yield
    finally:
        causal_lm.train(was_training)
        if exact != before:
            causal_lm.set_attn_implementation(before)


def caps_attention(config: PreTrainedConfig) -> bool:
    """Return whether the configuration names a soft cap of attention scores."""
    return bool(getattr(text_config(config), "attn_logit_softcapping", None))


def _exact_attention(causal_lm: PreTrainedModel, current: str) -> str:
    """Return an implementation that leaves out nothing: transformers' SDPA ignores soft caps and attention sinks."""
    if not causal_lm._supports_sdpa or caps_attention(causal_lm.config):
        return "eager"
    return current if current in _MAKE_OWN_MASK else "sdpa"
