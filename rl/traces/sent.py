"""The tokens of a trajectory as it was sent, for one that trained nothing, or was only logged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from tandem.rl.base_text import BaseText
from tandem.rl.batch import build_sequences
from tandem.rl.config import TrainingConfig
from tandem.rl.errors import TrajectoryError
from tandem.rl.exchanges.branches import Branches
from tandem.rl.exchanges.conversion import convert
from tandem.rl.reports.accounting import Accounting
from tandem.rl.tokens.choices import NotExactError, Vocabulary, sampling_logprobs
from tandem.rl.tokens.drafts import Draft, Turn, unknown_logprobs
from tandem.rl.tokens.messages import Choice
from tandem.rl.tokens.tokenizing import ChatTokenizer
from tandem.rl.traces.group_trace import SequenceTrace
from tandem.rl.trajectories import History, Trajectory, TrajectoryGroup


@dataclass(frozen=True)
class SentTokens:
    """A trajectory's tokens as its sampled turns have them."""

    reason: str | None
    """Why it can't train, by the keys of `accounting.REASONS`; None if it can, or isn't meant to."""
    sequences: tuple[SequenceTrace, ...]
    """Without advantage and learner's logprobs. `loss_mask` is false everywhere."""
    num_choices_without_ids: int
    """Choices that don't say their tokens."""


def sent_tokens(group: TrajectoryGroup, index: int, text: BaseText, config: TrainingConfig | None) -> SentTokens:
    """Return the tokens of a trajectory of a group. `config` are the options of its job, None for a log.

    Raises IndexError if the group has no such trajectory.
    """
    trajectory = group.trajectories[index]
    reason = None if config is None else _reason(group, index, text, config)
    drafts, num_unknown = _Drafts(Vocabulary(text.tokenizer, text.vocab_size)), 0
    if trajectory.exchanges is not None:
        drafts.add_exchanges(trajectory)
    for number, history in enumerate(trajectory.histories):
        num_unknown += drafts.add_history(number, history)
    return SentTokens(reason, tuple(drafts.sequences()), num_unknown)


def _reason(group: TrajectoryGroup, index: int, text: BaseText, config: TrainingConfig) -> str | None:
    """Return why a trajectory can't train, as the job's own accounting has it."""
    accounting = Accounting(config)
    [sequences] = build_sequences([group], ChatTokenizer(text.tokenizer, text.vocab_size), config, accounting)
    if (reason := accounting.reason((0, index))) is not None:
        return reason
    limit = config.packed_sequence_length or text.max_model_len
    fits = any(one.num_tokens <= limit for one in sequences if one.trajectory == index)
    return None if fits else "too_long"


class _Drafts:
    """Sequences of sampled turns, each after its prompt, as far as the trajectory has their ids."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._drafts: list[tuple[int, Draft]] = []

    def add_exchanges(self, trajectory: Trajectory) -> None:
        assert trajectory.exchanges is not None
        branches = Branches()
        with suppress(TrajectoryError):  # exchanges without exact tokens have nothing to show here
            for generation in convert(trajectory.exchanges, self._vocabulary, (0, 0)).generations:
                branches.add(generation)
        self._drafts += [(0, draft) for draft in branches.drafts]

    def add_history(self, number: int, history: History) -> int:
        """Return how many choices don't say their tokens."""
        num_unknown, current = 0, None
        for index, item in enumerate(history.messages_and_choices):
            if not isinstance(item, Choice):
                continue
            turn = self._turn(index, item)
            if turn is None:
                num_unknown += 1
                continue
            prompt = turn.prompt_token_ids or []
            if current is None or not current.token_ids or prompt[: len(current.token_ids)] != current.token_ids:
                current = Draft()
                self._drafts.append((number, current))
            current.add_context(prompt[len(current.token_ids) :])
            current.add_turn(turn)
        return num_unknown

    def _turn(self, index: int, item: Choice) -> Turn | None:
        if not item.num_logprobs and item.token_ids is None:
            return None
        try:
            ids = self._vocabulary.sampled_ids(item)
            logprobs = sampling_logprobs(item) if item.num_logprobs else unknown_logprobs(len(ids))
            prompt = item.prompt_token_ids
            if prompt is not None:
                self._vocabulary.checked(prompt, lambda place: ("prompt_token_ids", place))
        except NotExactError:
            return None
        return Turn(index, ids, logprobs, True, prompt, policy_version=item.version) if ids else None

    def sequences(self) -> Iterator[SequenceTrace]:
        for history, draft in self._drafts:
            one = draft.finish((0, 0, history))
            unknown = np.full(one.num_tokens, np.nan, np.float32)
            yield SequenceTrace(
                trajectory=0,
                history=history,
                policy_version=min((t.policy_version for t in one.turns if t.policy_version is not None), default=None),
                gradient_step=-1,
                advantage=0.0,
                weight=0.0,
                turns=one.turns,
                token_ids=one.token_ids.numpy().astype(np.int32),
                loss_mask=np.zeros(one.num_tokens, bool),
                sampling_logprobs=one.sampling_logprobs.numpy().astype(np.float32),
                learner_logprobs=unknown,
            )
