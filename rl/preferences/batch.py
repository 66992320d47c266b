"""A job's pairs to the packed rows of its gradient steps.

A pair is a group of two sequences, whose advantages are the signs of its answers: 1 for the preferred one, -1 for the
other. Tokens that both sequences begin with cancel out in the objective, so they aren't trained, and rows hold them
once. Pairs keep the order of the data: each step takes the next `batch_size` pairs, the last one what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from tandem.rl.base_text import BaseText
from tandem.rl.batch import default_packed_length
from tandem.rl.packing import PackedSequence, pack
from tandem.rl.preferences.config import PreferenceConfig
from tandem.rl.preferences.rows import PreferenceRow
from tandem.rl.prefix_order import common_length
from tandem.rl.supervised.batch import NothingToTrainError
from tandem.rl.supervised.rows import RowError
from tandem.rl.supervised.tokenizing import tokenize_row
from tandem.rl.tokens.tokenizing import ChatTokenizer, TokenizedSequence
from tandem.rl.traces.sequences import TracedSequence, traced_sequences

PREFERRED, OTHER = 1.0, -1.0
"""Signs of the answers, as advantages."""


@dataclass(frozen=True)
class PreferenceStep:
    """The packed rows of one gradient step. Its pairs are the groups `first_pair` to `first_pair + num_pairs` - 1."""

    rows: tuple[PackedSequence, ...]
    first_pair: int
    num_pairs: int


@dataclass(frozen=True)
class PreferenceBatch:
    """What a job of preference pairs trains on."""

    steps: tuple[PreferenceStep, ...]
    num_too_long: int
    """Pairs that were left out, because one of their sequences is longer than the model's limit."""
    max_model_len: int
    traced: tuple[TracedSequence, ...] = ()
    """The sequences of the rows in the order of their trace ids. The pairs are their groups."""

    @property
    def sequences(self) -> tuple[PackedSequence, ...]:
        return tuple(row for step in self.steps for row in step.rows)

    @property
    def num_pairs(self) -> int:
        return sum(step.num_pairs for step in self.steps)

    @property
    def num_trained_tokens(self) -> int:
        return sum(row.num_trained_tokens for row in self.sequences)


def build_preferences(
    rows: Iterable[tuple[int, PreferenceRow]], base: BaseText, config: PreferenceConfig
) -> PreferenceBatch:
    """Tokenise and pack. The same arguments give the same batch. `rows`: with their lines in the data.

    Raises RowError for a pair that can't be trained exactly, and NothingToTrainError.
    """
    chat, num_too_long = ChatTokenizer(base.tokenizer, base.vocab_size), 0
    pairs: list[tuple[TokenizedSequence, TokenizedSequence]] = []
    for line, row in rows:
        pair = tokenize_pair(row, chat, line, number=len(pairs))
        if max(sequence.num_tokens for sequence in pair) > base.max_model_len:
            num_too_long += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise NothingToTrainError(
            f"The data has no pair to train: {num_too_long} are longer than the model's limit of {base.max_model_len} "
            "tokens."
        )
    longest = max(sequence.num_tokens for pair in pairs for sequence in pair)
    length = default_packed_length(longest, base.max_model_len, base.device)
    size = config.pairs_per_step
    trained = (sum(sequence.num_trained_tokens for sequence in pair) for pair in pairs)
    trace_ids = list(accumulate(trained, initial=0))
    steps = [
        _step(first, pairs[first : first + size], length, base, trace_ids[first])
        for first in range(0, len(pairs), size)
    ]
    traced = traced_sequences(sequence for pair in pairs for sequence in pair)
    return PreferenceBatch(tuple(steps), num_too_long, base.max_model_len, traced)


def _step(
    first: int,
    pairs: Sequence[tuple[TokenizedSequence, TokenizedSequence]],
    length: int,
    base: BaseText,
    first_trace_id: int,
) -> PreferenceStep:
    sequences = [sequence for pair in pairs for sequence in pair]
    rows = pack(sequences, length, shares_prefixes=base.shares_prefixes, first_trace_id=first_trace_id)
    return PreferenceStep(tuple(rows), first, len(pairs))


def tokenize_pair(
    row: PreferenceRow, chat: ChatTokenizer, line: int, number: int
) -> tuple[TokenizedSequence, TokenizedSequence]:
    """Return the exact sequences of the preferred answer and of the other one, which train where they differ.

    Raises RowError.
    """
    preferred, other = (
        tokenize_row(side, chat, "last", line, (number, index))[0] for index, side in enumerate(row.sides())
    )
    common = common_length(preferred.token_ids.numpy(), other.token_ids.numpy())
    if common == min(preferred.num_tokens, other.num_tokens):
        # One sequence would train nothing. Equal ones differ in nothing; otherwise one lacks the end of its turn.
        raise RowError(line, "the preferred answer and the other one begin alike to the end of one of them, in tokens")
    return (
        _trained_from(common, replace(preferred, advantage=PREFERRED)),
        _trained_from(common, replace(other, advantage=OTHER)),
    )


def _trained_from(start: int, sequence: TokenizedSequence) -> TokenizedSequence:
    """Return the sequence, which trains nothing before `start`. All before is the prompt that it shares, but for its
    last token, which predicts the first trained one."""
    loss_mask = sequence.loss_mask.clone()
    loss_mask[:start] = False
    return replace(sequence, loss_mask=loss_mask, prompt_length=max(start - 1, 0))
