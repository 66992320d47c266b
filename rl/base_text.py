"""The parts of a base model that turning messages into packed rows needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class BaseText:
    tokenizer: PreTrainedTokenizerBase
    max_model_len: int
    """Longest sequence, in tokens."""
    vocab_size: int | None = None
    """Rows of the model's embedding, if it has more than the tokenizer has tokens."""
    shares_prefixes: bool = True
    """Whether the model can compute a prefix once for several sequences of a row."""
    device: str = "cpu"
    """The kind of the learners' device, which decides the default length of rows."""
