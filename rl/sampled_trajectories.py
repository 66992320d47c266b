"""A trajectory as training sees it: sampled turns with what a job reports about each, in either wire form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tandem.rl.exchanges.branches import Branches
from tandem.rl.exchanges.conversion import PolicyExchanges, convert
from tandem.rl.reports.accounting import Place
from tandem.rl.tokens.tokenizing import ChatTokenizer, TokenizedSequence, tokenize_history
from tandem.rl.trajectories import Trajectory, TrajectoryGroup, choices_of


@dataclass(frozen=True)
class SampledTurn:
    """A turn that the policy sampled."""

    num_tokens: int
    """0 if the choice doesn't say it."""
    num_logprobs: int
    policy_version: int | None


@dataclass(frozen=True)
class SampledTrajectory:
    """A trajectory of messages and choices, or of `exchanges` as they were converted."""

    trajectory: Trajectory
    exchanges: PolicyExchanges | None = None

    @property
    def turns(self) -> Iterator[SampledTurn]:
        """Its sampled turns in order."""
        if self.exchanges is not None:
            for one in self.exchanges.generations:
                yield SampledTurn(one.num_tokens, one.num_logprobs, one.policy_version)
            return
        for choice in choices_of(self.trajectory):
            ids = choice.token_ids
            num_tokens = choice.num_logprobs if ids is None else len(ids)
            yield SampledTurn(num_tokens, choice.num_logprobs, choice.version)

    @property
    def policy_version(self) -> int | None:
        """The step of the policy version at the start of the trajectory; None if unknown.

        It is `initial_policy_version`, else the lowest `policy_version` that the service wrote into the choices.
        """
        if self.trajectory.initial_policy_version is not None:
            return self.trajectory.initial_policy_version
        return min((turn.policy_version for turn in self.turns if turn.policy_version is not None), default=None)

    def tokenize(
        self, chat: ChatTokenizer, allow_without_logprobs: bool, place: Place
    ) -> tuple[list[TokenizedSequence], int]:
        """Return its exact sequences, and how many sampled tokens came again and train only once.

        Raises TrajectoryError.
        """
        if self.exchanges is None:
            return [
                sequence
                for number, history in enumerate(self.trajectory.histories)
                for sequence in tokenize_history(history, chat, allow_without_logprobs, (*place, number))
            ], 0
        branches = Branches()
        for generation in self.exchanges.generations:
            if generation.num_logprobs or allow_without_logprobs:
                branches.add(generation)
        return [draft.finish((*place, 0)) for draft in branches.drafts], branches.num_repeated


def sampled_trajectories(index: int, group: TrajectoryGroup, chat: ChatTokenizer) -> list[SampledTrajectory]:
    """Return the trajectories of a group, the exchanges converted. Raises TrajectoryError."""
    return [
        SampledTrajectory(
            trajectory,
            convert(trajectory.exchanges, chat.vocabulary, (index, number)) if trajectory.exchanges else None,
        )
        for number, trajectory in enumerate(group.trajectories)
    ]
