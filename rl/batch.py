"""A job's trajectory groups to packed sequences for the learners.

The API calls this to check a job, the coordinator to train it, so both use the same rules.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from tandem.rl.advantages import (
    balance_and_normalize,
    group_advantages,
    reward_std_dev,
    trajectory_weight,
)
from tandem.rl.config import TrainingConfig
from tandem.rl.errors import ConfigError
from tandem.rl.packing import PackedSequence, pack
from tandem.rl.prefix_order import common_length
from tandem.rl.reports.accounting import Account, Accounting
from tandem.rl.reports.reward_spread import reward_spread
from tandem.rl.sampled_trajectories import SampledTrajectory, sampled_trajectories
from tandem.rl.tokens.tokenizing import ChatTokenizer, TokenizedSequence
from tandem.rl.traces.sequences import TracedSequence, traced_sequences
from tandem.rl.trajectories import TrajectoryGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKED_LENGTH_STEP = 2048
"""Tokens to which the default packed_sequence_length is rounded up."""
LEAST_PACKED_LENGTH: Mapping[str, int] = {"cpu": PACKED_LENGTH_STEP, "cuda": 8192}
"""The least default packed_sequence_length by the learners' device. Short rows leave a GPU idle between kernels."""


@dataclass(frozen=True)
class TrainingBatch:
    """The packed sequences of a job, empty if there is nothing to learn, and its counts."""

    sequences: tuple[PackedSequence, ...]
    num_groups: int
    num_trajectories: int
    num_dropped_too_long: int
    """Token sequences longer than packed_sequence_length."""
    num_tokens_in_sequences: int
    """Tokens of the packed sequences, those of shared prefixes once per sequence."""
    account: Account
    """What trains, and why the rest doesn't."""
    sampled_versions: tuple[int | None, ...]
    """For each trajectory, the step of the policy version at its start; None if unknown."""
    reward_mean: float
    """Over all trajectories; 0 without any."""
    reward_std_dev: float
    """Population standard deviation of the rewards of a group, averaged over the groups; 0 without any."""
    reward_spread: Mapping[str, float]
    """Quantiles over all trajectories, under their wire names."""
    traced: tuple[TracedSequence, ...] = ()
    """The sequences of the rows in the order of their trace ids."""

    @property
    def num_trained_tokens(self) -> int:
        return self.account.num_tokens

    @property
    def num_tokens_computed(self) -> int:
        """Tokens of the rows, those of shared prefixes once per row."""
        return sum(row.num_tokens for row in self.sequences)

    def metrics(self) -> dict[str, float]:
        """Return the numbers of the batch under their wire names."""
        return {
            "reward": self.reward_mean,
            "reward_std_dev": self.reward_std_dev,
            **self.reward_spread,
            "data/step_num_groups_submitted": float(self.num_groups),
            "data/step_num_trajectories": float(self.num_trajectories),
            "data/step_num_sequences_dropped_too_long": float(self.num_dropped_too_long),
            "data/step_num_tokens_in_sequences": float(self.num_tokens_in_sequences),
            "data/step_num_tokens_computed": float(self.num_tokens_computed),
            **self.account.metrics(),
        }


def build_batch(
    groups: Iterable[TrajectoryGroup],
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
    max_model_len: int,
    shuffle_seed: int | None = None,
    vocab_size: int | None = None,
    shares_prefixes: bool = True,
    device: str = "cpu",
) -> TrainingBatch:
    """Tokenise, compute advantages and weights, pack. The same arguments give the same batch.

    Args:
        groups: the job's trajectory groups, consumed one by one to save memory. Exchanges know their policy
            (`Exchanges.of_policy`).
        tokenizer: the base model's.
        config: the job's options.
        max_model_len: longest sequence of the model, in tokens.
        shuffle_seed: seed to shuffle sequences within their group, and packed sequences; None keeps the order.
        vocab_size: rows of the model's embedding, if it has more than the tokenizer has tokens.
        shares_prefixes: whether the model can compute a prefix once for several sequences of a row.
        device: the kind of the learners' device, which decides the default packed_sequence_length.

    Raises:
        TrajectoryError: a trajectory can't be tokenised exactly.
        ConfigError: packed_sequence_length is above the model's limit.
    """
    _check_length(config, max_model_len)
    shuffle = None if shuffle_seed is None else random.Random(shuffle_seed).shuffle
    tokenized: list[TokenizedSequence] = []
    notes, accounting = _Notes([], []), Accounting(config)
    for of_group in build_sequences(groups, ChatTokenizer(tokenizer, vocab_size), config, accounting, notes.add):
        if shuffle:
            shuffle(of_group)
        tokenized += of_group
    longest = max((sequence.num_tokens for sequence in tokenized), default=0)
    length = config.packed_sequence_length or default_packed_length(longest, max_model_len, device)
    kept = [sequence for sequence in tokenized if sequence.num_tokens <= length]
    final = finalize(kept, config.advantage_balance or 0.0)
    packed = pack(final, length, shares_prefixes=shares_prefixes, first_trace_id=0)
    if shuffle:
        shuffle(packed)
    num_tokens = sum(sequence.num_tokens for sequence in final)
    account = accounting.close(tokenized, kept, final)
    described = _describe(notes, packed, account, len(tokenized) - len(kept), num_tokens)
    return replace(described, traced=traced_sequences(final))


def check_groups(
    groups: Iterable[TrajectoryGroup],
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
    max_model_len: int,
    vocab_size: int | None = None,
) -> None:
    """Raise what `build_batch` raises, in less time and with one group in memory."""
    _check_length(config, max_model_len)
    for _ in build_sequences(groups, ChatTokenizer(tokenizer, vocab_size), config):
        pass


def _check_length(config: TrainingConfig, max_model_len: int) -> None:
    if config.packed_sequence_length is not None and config.packed_sequence_length > max_model_len:
        raise ConfigError(
            "packed_sequence_length",
            f"{config.packed_sequence_length} is above the model's limit of {max_model_len} tokens; lower it or leave "
            "it out",
        )


@dataclass(frozen=True)
class _Notes:
    """Facts about the trajectory groups."""

    rewards: list[list[float]]
    """Of each group."""
    sampled_versions: list[int | None]

    def add(self, group: Sequence[SampledTrajectory]) -> None:
        self.rewards.append([one.trajectory.reward for one in group])
        self.sampled_versions.extend(one.policy_version for one in group)


def build_sequences(
    groups: Iterable[TrajectoryGroup],
    chat: ChatTokenizer,
    config: TrainingConfig,
    accounting: Accounting | None = None,
    note: Callable[[Sequence[SampledTrajectory]], object] = lambda group: None,
) -> Iterator[list[TokenizedSequence]]:
    """Yield the sequences of each group, with advantage, weight and shared prompt. Raises TrajectoryError.

    Trajectories with an advantage of 0 aren't tokenised, but their rewards count in the group's mean. `note` gets the
    trajectories of each group.
    """
    scale_rewards = config.scale_rewards is not False and config.normalize_advantages is not False
    accounting = accounting or Accounting(config)
    for index, group in enumerate(groups):
        sampled = sampled_trajectories(index, group, chat)
        note(sampled)
        advantages = group_advantages([trajectory.reward for trajectory in group.trajectories], scale_rewards)
        accounting.group(index, group, sampled, advantages)
        allow_without_logprobs = bool(config.allow_training_without_logprobs)
        yield _group_sequences(index, sampled, advantages, chat, allow_without_logprobs, accounting)


def _group_sequences(
    index: int,
    group: Sequence[SampledTrajectory],
    advantages: Sequence[float],
    chat: ChatTokenizer,
    allow_without_logprobs: bool,
    accounting: Accounting,
) -> list[TokenizedSequence]:
    sequences: list[TokenizedSequence] = []
    for number, (trajectory, advantage) in enumerate(zip(group, advantages, strict=True)):
        if advantage != 0:
            own, num_repeated = trajectory.tokenize(chat, allow_without_logprobs, (index, number))
            accounting.tokenized((index, number), own, num_repeated)
            weight = trajectory_weight(sum(sequence.num_trained_tokens for sequence in own))
            version = trajectory.policy_version
            sequences += [
                replace(sequence, advantage=advantage, weight=weight, policy_version=version) for sequence in own
            ]
    prompt_length = _shared_prompt_length(sequences)
    return [replace(sequence, prompt_length=prompt_length) for sequence in sequences]


def _shared_prompt_length(sequences: Sequence[TokenizedSequence]) -> int:
    """Return the length of the common untrained prefix, less one: its last token predicts each sequence's next."""
    if not sequences:
        return 0
    first, shared = sequences[0].token_ids.numpy(), min(_first_trained(sequence) for sequence in sequences)
    for sequence in sequences[1:]:
        shared = common_length(first[:shared], sequence.token_ids.numpy()[:shared])
    return max(shared - 1, 0)


def _first_trained(sequence: TokenizedSequence) -> int:
    return int(sequence.loss_mask.numpy().argmax())


def default_packed_length(longest: int, max_model_len: int, device: str = "cpu") -> int:
    """Return the packed_sequence_length of a job that sets none and whose longest sequence has `longest` tokens."""
    rounded = math.ceil(longest / PACKED_LENGTH_STEP) * PACKED_LENGTH_STEP
    return min(max(rounded, LEAST_PACKED_LENGTH[device]), max_model_len)


def finalize(sequences: Sequence[TokenizedSequence], advantage_balance: float) -> list[TokenizedSequence]:
    """Return the sequences with balanced, normalised advantages and weights; none if nothing is left to learn."""
    balanced = balance_and_normalize(
        [sequence.advantage for sequence in sequences],
        [sequence.weight for sequence in sequences],
        [sequence.num_trained_tokens for sequence in sequences],
        advantage_balance,
    )
    if balanced is None:
        return []
    return [
        replace(sequence, advantage=advantage, weight=weight)
        for sequence, advantage, weight in zip(sequences, *balanced, strict=True)
    ]


def _describe(
    notes: _Notes,
    packed: Sequence[PackedSequence],
    account: Account,
    num_dropped_too_long: int,
    num_tokens_in_sequences: int,
) -> TrainingBatch:
    rewards = [of_group for of_group in notes.rewards if of_group]
    flat = [reward for of_group in rewards for reward in of_group]
    return TrainingBatch(
        sequences=tuple(packed),
        num_groups=len(notes.rewards),
        num_trajectories=len(flat),
        num_dropped_too_long=num_dropped_too_long,
        num_tokens_in_sequences=num_tokens_in_sequences,
        account=account,
        sampled_versions=tuple(notes.sampled_versions),
        reward_mean=fmean(flat) if flat else 0.0,
        reward_std_dev=fmean(map(reward_std_dev, rewards)) if rewards else 0.0,
        reward_spread=reward_spread(flat),
    )
