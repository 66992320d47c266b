"""A job's rows to the packed rows of its gradient steps.

Rows keep the order of the data: each step takes the next `batch_size` rows, the last one what is left. Sequences of a
step that begin alike share what they have in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from tandem.rl.base_text import BaseText
from tandem.rl.batch import default_packed_length
from tandem.rl.errors import ConfigError, RLError
from tandem.rl.packing import PackedSequence, pack
from tandem.rl.supervised.config import SupervisedConfig
from tandem.rl.supervised.rows import SupervisedRow
from tandem.rl.supervised.tokenizing import tokenize_row
from tandem.rl.tokens.tokenizing import ChatTokenizer, TokenizedSequence
from tandem.rl.traces.sequences import TracedSequence, traced_sequences


class NothingToTrainError(RLError, ValueError):
    """No row has a token to train."""


@dataclass(frozen=True)
class SupervisedStep:
    """The packed rows of one batch, none if it has nothing to train, and its counts."""

    rows: tuple[PackedSequence, ...]
    learning_rate: float
    num_trajectories: int
    """Rows of the data, without the dropped ones."""
    num_tokens: int
    """Of their sequences, those of shared prefixes once per sequence."""
    num_trainable_tokens: int
    num_dropped_trajectories: int
    """Rows of the data that are longer than the model's limit."""


@dataclass(frozen=True)
class SupervisedBatch:
    """What a supervised job trains on."""

    steps: tuple[SupervisedStep, ...]
    num_untrained: int
    """Rows of the data, besides the dropped ones, that have nothing to train."""
    ignored_fields: Mapping[str, int]
    """Rows that have an unknown key, by its name."""
    max_model_len: int
    traced: tuple[TracedSequence, ...] = ()
    """The sequences of the rows in the order of their trace ids. The steps are their groups."""

    @property
    def sequences(self) -> tuple[PackedSequence, ...]:
        return tuple(row for step in self.steps for row in step.rows)

    def total(self, count: str) -> int:
        """Return the sum of one of the counts of the steps."""
        return sum(getattr(step, count) for step in self.steps)


def build_supervised(
    rows: Iterable[tuple[int, SupervisedRow]], base: BaseText, config: SupervisedConfig
) -> SupervisedBatch:
    """Tokenise and pack. The same arguments give the same batch. `rows`: with their lines in the data.

    Raises RowError for a row that can't be trained exactly, ConfigError for too few learning rates, and
    NothingToTrainError.
    """
    drafts, size = list[_Draft](), config.rows_per_step
    chat, turns = ChatTokenizer(base.tokenizer, base.vocab_size), config.assistant_turns or "all"
    num_untrained, ignored = 0, Counter[str]()
    for number, (line, row) in enumerate(rows):
        if number % size == 0:
            drafts.append(_Draft([]))
        ignored.update(row.ignored_fields())
        sequences = tokenize_row(row, chat, turns, line, place=(number // size, number % size))
        if max((sequence.num_tokens for sequence in sequences), default=0) > base.max_model_len:
            drafts[-1].num_dropped += 1
        else:
            drafts[-1].num_rows += 1
            drafts[-1].sequences += sequences
            num_untrained += not sequences
    try:
        rates = config.rates(len(drafts))
    except ValueError as error:
        raise ConfigError("learning_rate", str(error)) from error
    longest = max((sequence.num_tokens for draft in drafts for sequence in draft.sequences), default=0)
    length = default_packed_length(longest, base.max_model_len, base.device)
    firsts = accumulate((draft.num_trained for draft in drafts), initial=0)
    steps = [
        draft.packed(rate, length, base.shares_prefixes, first)
        for draft, rate, first in zip(drafts, rates, firsts, strict=False)
    ]
    traced = traced_sequences(sequence for draft in drafts for sequence in draft.sequences)
    batch = SupervisedBatch(tuple(steps), num_untrained, dict(ignored), base.max_model_len, traced)
    if not batch.sequences:
        raise NothingToTrainError(_nothing(batch))
    return batch


@dataclass
class _Draft:
    sequences: list[TokenizedSequence]
    num_rows: int = 0
    num_dropped: int = 0

    @property
    def num_trained(self) -> int:
        return sum(sequence.num_trained_tokens for sequence in self.sequences)

    def packed(self, learning_rate: float, length: int, shares_prefixes: bool, first_trace_id: int) -> SupervisedStep:
        shares = shares_prefixes
        return SupervisedStep(
            rows=tuple(pack(self.sequences, length, shares_prefixes=shares, first_trace_id=first_trace_id)),
            learning_rate=learning_rate,
            num_trajectories=self.num_rows,
            num_tokens=sum(sequence.num_tokens for sequence in self.sequences),
            num_trainable_tokens=self.num_trained,
            num_dropped_trajectories=self.num_dropped,
        )


def _nothing(batch: SupervisedBatch) -> str:
    num_dropped, num_rows = batch.total("num_dropped_trajectories"), batch.total("num_trajectories")
    if not num_dropped and not num_rows:
        return "The data has no rows, so there is nothing to train."
    return (
        f"Nothing of the {num_dropped + num_rows} rows can be trained: {batch.num_untrained} have no assistant message "
        f"to train, and {num_dropped} are longer than the model's limit of {batch.max_model_len} tokens."
    )
