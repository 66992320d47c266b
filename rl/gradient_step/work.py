"""The operations of a gradient step with LoRA, for the share of a GPU's peak that a learner reaches (MFU).

A frozen weight of a matrix product costs 4 operations per token: 2 in the forward pass, and 2 for the gradient of its
input. Its own gradient isn't computed. Attention costs 12 per head, number of a head, and pair of query and key that
see each other: 4 forward (scores and their sum of values), 8 backward. LoRA's own products, layers that gradient
checkpointing computes again, embeddings and layers of limited reach (windows, recurrent states) aren't counted, so the
share is of useful work, and never too high.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandem.rl.packing import PackedSequence

WEIGHT_OPERATIONS = 4
PAIR_OPERATIONS = 12


@dataclass(frozen=True)
class ModelWork:
    """The sizes of a base model that its operations follow from."""

    matmul_weights: int
    """Weights of the matrix products that a token takes part in: linear layers, chosen experts, output head."""
    attention_width: int
    """Heads times numbers of a head, over all layers in which a token sees all tokens before it."""

    def operations(self, num_tokens: int, num_pairs: int) -> float:
        """Return those of a step over this many tokens, and pairs of query and key."""
        return float(
            WEIGHT_OPERATIONS * self.matmul_weights * num_tokens + PAIR_OPERATIONS * self.attention_width * num_pairs
        )


def size_of_step(rows: Iterable[PackedSequence]) -> tuple[int, int]:
    """Return the tokens and the pairs of query and key of packed rows. A token at position p sees p + 1 tokens."""
    num_tokens = num_pairs = 0
    for row in rows:
        num_tokens += row.num_tokens
        num_pairs += int(row.positions.sum()) + row.num_tokens
    return num_tokens, num_pairs
