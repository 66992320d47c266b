"""The output head of a base model: the embedding that makes logits, and how the family changes these.

A configuration names a scale or a cap in several ways, and not every family that has such a field uses it. So the rules
that it may mean are compared with the model's own logits, also with logits so large that a cap shows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tandem.rl.errors import PolicyError
from tandem.rl.logprobs import LogitRule
from tandem.rl.models.base_config import text_config
from tandem.rl.models.reference import as_released

_SCALES = ("logit_scale", "lm_head_multiplier", "logits_scaling")
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_LARGE = 100.0  # a cap of 1,000 bends such a logit by 0.3


@torch.no_grad()
def logit_rule(causal_lm: PreTrainedModel) -> LogitRule:
    """Return how the model makes logits of its decoder's outputs. Raises PolicyError if no known rule gives them."""
    head = causal_lm.get_output_embeddings()
    bias = getattr(head, "bias", None)
    token_ids = (torch.arange(16) * head.weight.shape[0] // 16).to(head.weight.device)  # from all over the vocabulary
    with as_released(causal_lm):
        hidden, own = _own_logits(causal_lm, token_ids)
        products = F.linear(hidden, head.weight)
        factor = _LARGE / products.abs().max().clamp(min=1e-6).item()
        large = _own_logits(causal_lm, token_ids, factor)[1]
    worst = 0.0
    for rule in _candidates(causal_lm.config, None if bias is None else bias.detach()):
        # The hook multiplies what the head returns, with its bias.
        scaled = LogitRule(None if bias is None else bias * factor, rule.scale, rule.cap)
        apart = _difference(own, rule.apply(products.clone())), _difference(large, scaled.apply(products * factor))
        if max(apart) <= (1e-3 if own.dtype == torch.float32 else 2e-2):
            return rule
        worst = max(worst, *apart)
    raise PolicyError(
        f"{type(causal_lm).__name__} changes its logits after the output embedding in a way that training doesn't "
        f"reproduce: they differ by {worst:.1%}. Use another base model."
    )


def _candidates(config: PreTrainedConfig, bias: Tensor | None) -> Iterator[LogitRule]:
    """Yield the rules that the configuration may mean; the last one is that it means none."""
    text = text_config(config)
    caps = [float(value) for name in _CAPS if (value := getattr(text, name, None))]
    named = [float(value) for name in _SCALES if (value := getattr(text, name, None))]
    scales = [scale for value in named for scale in (value, 1 / value)]
    for cap in [*caps, None]:
        for scale in [*scales, 1.0]:
            yield LogitRule(bias, scale, cap)


def _own_logits(causal_lm: PreTrainedModel, token_ids: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the decoder's outputs [T, H] and the model's logits [T, V], if its output embedding were `factor` times
    as large."""
    hidden: list[Tensor] = []
    hooks = [
        causal_lm.get_decoder().register_forward_hook(lambda _module, _args, outputs: hidden.append(outputs[0])),
        causal_lm.get_output_embeddings().register_forward_hook(lambda _module, _args, products: products * factor),
    ]
    try:
        logits: Tensor = causal_lm(input_ids=token_ids[None], use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return hidden[0][0], logits


def _difference(logits: Tensor, others: Tensor) -> float:
    """Return the largest difference as a share of the largest logit."""
    return ((logits.float() - others.float()).abs().max() / logits.float().abs().max().clamp(min=1e-6)).item()
