"""What of a job trains, and why the rest doesn't: each trajectory that was sent trains or has one reason."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tandem.rl.advantages import have_spread
from tandem.rl.trajectories import choices_of
from tandem.rl.unread_fields import reported_names

if TYPE_CHECKING:
    from tandem.rl.config import TrainingConfig
    from tandem.rl.sampled_trajectories import SampledTrajectory
    from tandem.rl.tokens.tokenizing import TokenizedSequence
    from tandem.rl.trajectories import Trajectory, TrajectoryGroup

REASONS = {
    "empty": "no messages, no choices and no exchanges",
    "no_choices": "no sampled choices, only messages",
    "no_logprobs": "no logprobs on any choice",
    "no_tokens": "no sampled tokens",
    "alone_in_group": "a group without another trajectory to compare the reward with",
    "equal_rewards": "the same reward as all others of the group, up to rounding",
    "mean_reward": "a reward that is the mean of its group",
    "too_long": "longer than packed_sequence_length or the model's limit",
    "balanced_away": "an advantage of 0 after advantage_balance",
}
"""Why a trajectory doesn't train. If several hold, the first does."""
PARTS = {
    "choices_without_logprobs": "choices without logprobs, left out",
    "sequences_too_long": "sequences longer than packed_sequence_length or the model's limit, left out",
    "tokens_without_logprobs": "tokens with a placeholder for their logprob, trained with an importance ratio of 1",
    "tokens_repeated": "sampled tokens that came again in another exchange or choice, trained once",
    "exchanges_of_other_models": "exchanges of other models, left out",
}
"""Parts of trajectories that do train, which don't train as others do."""
UNTRAINABLE = {
    "no_logprobs": "no logprobs",
    "too_long": "a sequence longer than packed_sequence_length or the model's limit",
}
"""Why a sampled token can't train, whatever its reward. A token with an advantage of 0 isn't among them."""
MAX_NAMES, MAX_NAME = 20, 64

Place = tuple[int, int]
"""Indices of a group in the job and of a trajectory in the group."""


@dataclass(frozen=True)
class Account:
    """Counts of a whole job."""

    num_groups: int = 0
    """Groups of which at least one trajectory trains. The other counts, too, are of what trains."""
    num_trajectories: int = 0
    num_sequences: int = 0
    """Token sequences: a trajectory has one or more."""
    num_tokens: int = 0
    """Sampled tokens with an advantage."""
    not_trained: Mapping[str, int] = field(default_factory=dict)
    """Trajectories that don't train, by the keys of REASONS."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """By the keys of PARTS."""
    sampled_with: Mapping[str, int] = field(default_factory=dict)
    """Trained tokens by `sampling_marks`; a token may have several."""
    ignored_fields: Mapping[str, int] = field(default_factory=dict)
    """How often unknown fields came, by name."""
    num_retokenised: int = 0
    """Trained tokens whose ids aren't those that were sampled, but those of the choice's text. Only
    `allow_training_without_logprobs` makes such tokens possible."""
    untrainable: Mapping[str, int] = field(default_factory=dict)
    """Sampled tokens that can't train, by the keys of UNTRAINABLE."""

    def metrics(self) -> dict[str, float]:
        """Return the counts under their wire names."""
        counts = {
            "data/step_num_groups_trainable": self.num_groups,
            "data/step_num_trajectories_trained": self.num_trajectories,
            "data/step_num_tokens_trained": self.num_tokens,
            **{f"data/step_num_trajectories_not_trained/{reason}": n for reason, n in self.not_trained.items()},
            **{f"data/step_num_{part}": n for part, n in self.parts.items()},
            **{f"data/step_num_tokens_sampled_with/{mark}": n for mark, n in self.sampled_with.items()},
            "tokens/retokenised": self.num_retokenised,
            "tokens/untrainable": sum(self.untrainable.values()),
            **{f"tokens/untrainable/{reason}": n for reason, n in self.untrainable.items()},
        }
        return {name: float(count) for name, count in counts.items()}


class Accounting:
    """Collects the reasons while a batch is built. Call `group`, then `tokenized` of each trajectory, then `close`."""

    def __init__(self, config: TrainingConfig) -> None:
        self._allow_without_logprobs = bool(config.allow_training_without_logprobs)
        # These change the advantages of tokens during the step, those of 0 too.
        self._trains_any_advantage = bool(config.kl_penalty_coef or config.kimi_k2_tau)
        self._reasons: dict[Place, str | None] = {}
        self._without_logprobs: dict[Place, int] = {}
        self._others: dict[Place, int] = {}
        self._repeated: dict[Place, int] = {}
        self._num_tokens_without_logprobs = 0
        self._fields: Counter[str] = Counter()

    def group(
        self, index: int, group: TrajectoryGroup, sampled: Sequence[SampledTrajectory], advantages: Sequence[float]
    ) -> None:
        """Record a group with the sampled turns and the advantages of its trajectories."""
        spread = have_spread([trajectory.reward for trajectory in group.trajectories])
        self._fields.update(reported_names("group", group.model_extra))
        for number, (one, advantage) in enumerate(zip(sampled, advantages, strict=True)):
            self._record_fields(one.trajectory)
            without_data = self._without_data(one)
            of_reward = None
            if advantage == 0:
                of_reward = "mean_reward" if spread else "equal_rewards"
                if len(group.trajectories) == 1:
                    of_reward = "alone_in_group"
            self._reasons[index, number] = without_data or of_reward
            if not self._allow_without_logprobs:
                missing = [turn.num_tokens for turn in one.turns if not turn.num_logprobs]
                self._without_logprobs[index, number] = len(missing)
                self._num_tokens_without_logprobs += sum(missing)
            if one.exchanges is not None:
                self._others[index, number] = one.exchanges.num_of_others

    def tokenized(self, place: Place, sequences: Sequence[TokenizedSequence], num_repeated: int = 0) -> None:
        """Record the token sequences of a trajectory with an advantage, and its tokens that came again."""
        self._repeated[place] = num_repeated
        if not sequences and self._reasons[place] is None:
            self._reasons[place] = "no_tokens"

    def reason(self, place: Place) -> str | None:
        """Return why a trajectory that was recorded doesn't train, as far as is known before `close`."""
        return self._reasons[place]

    def close(
        self,
        tokenized: Sequence[TokenizedSequence],
        kept: Sequence[TokenizedSequence],
        final: Sequence[TokenizedSequence],
    ) -> Account:
        """Return the counts.

        Args:
            tokenized: all sequences.
            kept: those that aren't too long.
            final: those with their final advantages; none if nothing is left to train.
        """
        trained = [s for s in final if self._trains_any_advantage or _float32(s.advantage) != 0]
        of_all, of_kept, of_trained = _places(tokenized), _places(kept), _places(trained)
        for place, reason in self._reasons.items():
            if reason is None and place not in of_trained:
                self._reasons[place] = "balanced_away" if place in of_kept else "too_long"
        marks: Counter[str] = Counter()
        num_unknown = 0
        for sequence in trained:
            marks.update(dict(sequence.sampled_with))
            num_unknown += int(sequence.sampling_logprobs[sequence.loss_mask].isnan().sum())
        reasons = Counter(reason for reason in self._reasons.values() if reason is not None)
        parts = {
            "choices_without_logprobs": sum(self._without_logprobs.get(place, 0) for place in of_trained),
            "sequences_too_long": sum(of_all[place] - of_kept[place] for place in of_trained),
            "tokens_without_logprobs": 0 if self._allow_without_logprobs else num_unknown,
            "tokens_repeated": sum(self._repeated.get(place, 0) for place in of_trained),
            "exchanges_of_other_models": sum(self._others.get(place, 0) for place in of_trained),
        }
        untrainable = {
            "no_logprobs": self._num_tokens_without_logprobs,
            "too_long": _num_trained(tokenized) - _num_trained(kept),
        }
        return Account(
            num_groups=len({group for group, _ in of_trained}),
            num_trajectories=len(of_trained),
            num_sequences=len(trained),
            num_tokens=_num_trained(trained),
            not_trained={reason: reasons[reason] for reason in REASONS if reasons[reason]},
            parts={part: number for part, number in parts.items() if number},
            sampled_with=dict(sorted(marks.items())),
            ignored_fields=_bounded(self._fields),
            num_retokenised=sum(sequence.num_retokenised for sequence in trained),
            untrainable={reason: number for reason, number in untrainable.items() if number},
        )

    def _without_data(self, sampled: SampledTrajectory) -> str | None:
        """Return the reason why a trajectory has no tokens to train, whatever its reward."""
        messages = [turn for history in sampled.trajectory.histories for turn in history.messages_and_choices]
        if not messages and sampled.exchanges is None:
            return "empty"
        turns = list(sampled.turns)
        if self._allow_without_logprobs:
            is_assistant = any(isinstance(turn, dict) and turn["role"] == "assistant" for turn in messages)
            return None if turns or is_assistant else "no_choices"
        if not turns:
            return "no_choices"
        return None if any(turn.num_logprobs for turn in turns) else "no_logprobs"

    def _record_fields(self, trajectory: Trajectory) -> None:
        self._fields.update(reported_names("trajectory", trajectory.model_extra))
        for history in trajectory.additional_histories:
            self._fields.update(reported_names("history", history.model_extra))
        for choice in choices_of(trajectory):
            self._fields.update(reported_names("choice", choice.model_extra))
        for _, _, exchange in trajectory.exchanges.in_order() if trajectory.exchanges else ():
            self._fields.update(reported_names("exchange", exchange.model_extra))


def _num_trained(sequences: Iterable[TokenizedSequence]) -> int:
    return sum(sequence.num_trained_tokens for sequence in sequences)


def _places(sequences: Iterable[TokenizedSequence]) -> Counter[Place]:
    """Return the number of sequences of each trajectory."""
    return Counter((sequence.group, sequence.trajectory) for sequence in sequences)


def _float32(value: float) -> float:
    return array("f", [value])[0]


def _bounded(names: Counter[str]) -> dict[str, int]:
    """Return the most frequent names, each short and printable: clients choose them."""
    shown = Counter[str]()
    for name, number in names.most_common(MAX_NAMES):
        short = name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…"
        shown[short if short.isprintable() else repr(short)[1:-1]] += number
    return dict(shown)
