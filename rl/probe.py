"""The probe: a short sequence of tokens whose logprobs every holder of the same weights must compute alike.

    before, after = learner.probe(), ...            # lists of logprobs
    if not is_finite(after): ...                    # the weights are destroyed
    difference = compare(after, of_engine, tolerance_for(policy.dtype))

Learners and engines, which share no code, score the same tokens of the same policy version. Importing this needs no
torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

PROBE_TOKENS = 48


@dataclass(frozen=True)
class Tolerance:
    """The largest accepted difference of one token and of the mean, in nats."""

    max: float
    mean: float
    measurable: float = math.inf
    """The root mean square of differences that rounding can't be taken for."""

    def scaled(self, factor: float) -> Tolerance:
        return Tolerance(self.max * factor, self.mean * factor, self.measurable * factor)


FLOAT32 = Tolerance(max=1e-3, mean=3e-4, measurable=3e-5)
BFLOAT16 = Tolerance(max=1.5, mean=0.15, measurable=0.015)
"""Rounding to bfloat16 moves an unlikely token by tenths of a nat, in a mixture of experts by more; the mean stays."""
QUANTIZED = Tolerance(max=6.0, mean=0.6, measurable=0.6)
"""Rounding to 8 or 4 bits moves all logprobs the same way each time, so less can be told from a direction."""
QUANTIZED_WEIGHTS = "quantized"
"""In place of a dtype: weights from other files than the learners', rounded in any way."""


def tolerance_for(*dtypes: torch.dtype | str) -> Tolerance:
    """Return the tolerance for the least precise of these dtypes of weights."""
    if QUANTIZED_WEIGHTS in map(str, dtypes):
        return QUANTIZED
    return FLOAT32 if all(str(dtype).endswith(("float32", "float64")) for dtype in dtypes) else BFLOAT16


@dataclass(frozen=True)
class Difference:
    """How far two scorings of the same tokens are apart, in nats."""

    max: float
    mean: float
    tolerance: Tolerance

    @property
    def is_agreement(self) -> bool:
        """False for NaN, too."""
        return self.max <= self.tolerance.max and self.mean <= self.tolerance.mean

    def __str__(self) -> str:
        return (
            f"up to {self.max:.3g} nats, {self.mean:.3g} on average, where {self.tolerance.max:.3g} and "
            f"{self.tolerance.mean:.3g} are tolerated"
        )


def compare(logprobs: Sequence[float], others: Sequence[float], tolerance: Tolerance) -> Difference:
    """Compare two scorings token by token. A logprob that isn't finite on either side is an infinite difference."""
    pairs = list(zip(logprobs, others, strict=True))
    assert pairs, "a probe has at least two tokens"
    apart = [abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf for a, b in pairs]
    return Difference(max(apart), sum(apart) / len(apart), tolerance)


def is_finite(logprobs: Sequence[float]) -> bool:
    """Return whether the logits behind these logprobs were sane: NaN or infinite logits make them NaN."""
    return all(math.isfinite(value) for value in logprobs)


def probe_token_ids(config: PreTrainedConfig, num_tokens: int = PROBE_TOKENS) -> list[int]:
    """Return token ids for a model with this configuration, the same in every process.

    The second half repeats the first: a trained model predicts copies with confidence, so that they hardly depend on
    rounding, while the random first half depends on every weight. Ids that the configuration names (end of text,
    images, audio) are left out, and so are both ends of the vocabulary, where tokenizers keep their special tokens.
    """
    text = config.get_text_config()
    size = int(text.vocab_size)
    special = _special_ids(config) | _special_ids(text)
    generator = random.Random(20)
    half = -(-num_tokens // 2)
    ordinary = [token for token in range(size // 8, -(-size // 2)) if token not in special] or [0]
    first = generator.choices(ordinary, k=half)
    return (first + first)[:num_tokens]


def _special_ids(config: PreTrainedConfig) -> set[int]:
    values = [value for key, value in config.to_dict().items() if key.endswith(("_token_id", "_token_index"))]
    return {token for value in values for token in (value if isinstance(value, list) else [value]) if token is not None}
