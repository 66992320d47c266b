"""Exact token sequences while they are put together, turn by turn."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tandem.rl.tokens.trained_turns import TrainedTurn


@dataclass(frozen=True, eq=False)
class TokenizedSequence:
    """One exact token sequence of a history. Tensors are [T] and describe token t."""

    group: int
    """Index of the trajectory group in the job."""
    trajectory: int
    """Index of the trajectory in its group."""
    history: int
    """0 for the trajectory's own messages, k for additional_histories[k - 1]."""
    token_ids: Tensor
    """int64."""
    loss_mask: Tensor
    """bool. True where the token was sampled and is trained."""
    sampling_logprobs: Tensor
    """float64. The sampler's logprob of the token, NaN where unknown."""
    choice_offsets: tuple[int, ...]
    """Index of the first token of each trained choice."""
    advantage: float = 0.0
    """Relative to the group, before balancing and normalisation."""
    weight: float = 0.0
    """1 / trained tokens of the trajectory, before normalisation."""
    prompt_length: int = 0
    """Tokens shared with every other sequence of the group, less the last, which predicts the first own token."""
    policy_version: int | None = None
    """The step of the policy version at the start of the trajectory, if known."""
    sampled_with: tuple[tuple[str, int], ...] = ()
    """Trained tokens by `sampling_marks`."""
    num_retokenised: int = 0
    """Trained tokens of choices without ids, whose text was tokenised again."""
    turns: tuple[TrainedTurn, ...] = ()
    first_trace_id: int | None = None
    """The number of the first trained token among all of the job; the others follow. None: not traced."""

    @property
    def trace_ids(self) -> Tensor:
        """int32. The number of each trained token among all of the job; -1 elsewhere."""
        if self.first_trace_id is None:
            return torch.full_like(self.token_ids, -1, dtype=torch.int32)
        numbers = self.loss_mask.cumsum(0, dtype=torch.int32) + (self.first_trace_id - 1)
        return torch.where(self.loss_mask, numbers, -1)

    @property
    def num_tokens(self) -> int:
        return self.token_ids.numel()

    @property
    def num_trained_tokens(self) -> int:
        return int(self.loss_mask.sum())


@dataclass(frozen=True)
class Turn:
    """A turn to train: its place in the history, its sampled tokens, and their context if known."""

    index: int
    token_ids: list[int]
    logprobs: np.ndarray
    is_choice: bool
    prompt_token_ids: list[int] | None = None
    marks: tuple[str, ...] = ()
    """See `sampling_marks`."""
    is_retokenised: bool = False
    """The ids are those of the text, since the choice has none."""
    policy_version: int | None = None
    """The step of the version that sampled it, if known."""


@dataclass
class Draft:
    """A sequence under construction."""

    token_ids: list[int] = field(default_factory=list)
    loss_masks: list[np.ndarray] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    choice_offsets: list[int] = field(default_factory=list)
    turns: list[TrainedTurn] = field(default_factory=list)
    marks: Counter[str] = field(default_factory=Counter)
    num_retokenised: int = 0

    def add_context(self, ids: list[int]) -> None:
        """Add tokens that aren't trained."""
        self._add(ids, unknown_logprobs(len(ids)), np.zeros(len(ids), bool))

    def add_turn(self, turn: Turn, trained: np.ndarray | None = None) -> None:
        """Add the tokens of a turn. `trained` [T] says which are trained; None means all."""
        if turn.is_choice:
            self.choice_offsets.append(len(self.token_ids))
        self.turns.append(TrainedTurn(len(self.token_ids), len(turn.token_ids), turn.index, turn.policy_version))
        mask = np.ones(len(turn.token_ids), bool) if trained is None else trained
        self._add(turn.token_ids, np.where(mask, turn.logprobs, math.nan), mask)
        num_trained = int(mask.sum())
        self.marks.update(dict.fromkeys(turn.marks, num_trained))
        self.num_retokenised += num_trained if turn.is_retokenised else 0

    def finish(self, place: tuple[int, int, int]) -> TokenizedSequence:
        """Return the sequence. `place` is (group, trajectory, history)."""
        return TokenizedSequence(
            *place,
            token_ids=torch.from_numpy(np.array(self.token_ids, np.int64)),
            loss_mask=torch.from_numpy(np.concatenate(self.loss_masks)),
            sampling_logprobs=torch.from_numpy(np.concatenate(self.logprobs)),
            choice_offsets=tuple(self.choice_offsets),
            sampled_with=tuple(self.marks.items()),
            num_retokenised=self.num_retokenised,
            turns=tuple(self.turns),
        )

    def _add(self, ids: list[int], logprobs: np.ndarray, trained: np.ndarray) -> None:
        self.token_ids += ids
        self.logprobs.append(logprobs)
        self.loss_masks.append(trained)


def unknown_logprobs(num_tokens: int) -> np.ndarray:
    """Return NaN for each of `num_tokens` tokens."""
    return np.full(num_tokens, math.nan)
