"""Which sequence of which trajectory the numbered trainings of a job belong to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tandem.rl.tokens.drafts import TokenizedSequence
from tandem.rl.tokens.trained_turns import TrainedTurn


@dataclass(frozen=True)
class TracedSequence:
    """A sequence of a job whose trained tokens are numbered (`PackedSequence.trace_ids`), one after another."""

    group: int
    trajectory: int
    history: int
    num_tokens: int
    num_trained: int
    turns: tuple[TrainedTurn, ...]


def traced_sequences(sequences: Iterable[TokenizedSequence]) -> tuple[TracedSequence, ...]:
    """Return the sequences in the order in which `pack` numbers them."""
    return tuple(
        TracedSequence(s.group, s.trajectory, s.history, s.num_tokens, s.num_trained_tokens, s.turns) for s in sequences
    )
