"""The ruler: the same measurement for every policy version, whichever trainer made it.

One rollout on each evaluation task of the run's seed, with the same random numbers each time, at temperature 1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch

from loss_comparison.job import Adapter
from loss_comparison.sampling import Sampler
from loss_comparison.settings import Settings
from tandem.rl.environments.base import Environment
from tandem.rl.environments.rollouts import TaskStream, roll_out_group
from tandem.rl.losses import LossInputs
from tandem.rl.packing import pack
from tandem.rl.policy import Policy
from tandem.rl.tokens.tokenizing import ChatTokenizer, tokenize_history
from tandem.rl.trajectories import TrajectoryGroup

ROW_TOKENS = 512


@dataclass(frozen=True)
class Measurement:
    reward: float
    """Mean over the evaluation tasks."""
    kl_base: float | None = None
    """Only in a detailed measurement, like the fields below. Mean of log pi - log pi_base over the sampled tokens, the
    plain estimate of KL(pi || pi_base) per token. The variance of the non-negative estimate (k3) explodes where pi has
    learnt to avoid answers of the base model."""
    entropy: float | None = None
    """Mean over the sampled tokens of the entropy of pi, exact at each."""
    sampler_learner_difference: float | None = None
    """Largest distance between the sampler's and the learner's logprob of a token."""

    def record(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Ruler:
    """Evaluates versions. `policy` has its own adapter again afterwards."""

    sampler: Sampler
    policy: Policy
    base: Adapter
    environment: Environment[Any]
    tasks: Sequence[Any]
    seed: int
    settings: Settings

    @classmethod
    def of(
        cls, sampler: Sampler, policy: Policy, base: Adapter, environment: Environment[Any], seed: int,
        settings: Settings,
    ) -> Ruler:  # fmt: skip
        tasks = TaskStream(environment.tasks("eval"), seed).batch(0, settings.num_eval_tasks)
        return cls(sampler, policy, base, environment, tasks, seed, settings)

    def measure(self, version: int, adapter: Adapter) -> Measurement:
        """Measure a version, in detail only for the last one: scoring costs more than sampling."""
        groups = sample_groups(self, version, adapter, self.tasks, 1, f"eval/{self.seed}")
        trajectories = [group.trajectories[0] for group in groups]
        reward = fmean(trajectory.reward for trajectory in trajectories)
        if version < self.settings.num_versions:
            return Measurement(reward)
        chat = ChatTokenizer(self.sampler.tokenizer)
        sequences = [
            replace(sequence, group=index)
            for index, trajectory in enumerate(trajectories)
            for history in trajectory.histories
            for sequence in tokenize_history(history, chat)
        ]
        rows = pack(sequences, max(ROW_TOKENS, *(sequence.num_tokens for sequence in sequences)))
        own = self.policy.adapter_state()
        policy, entropy = self._scores(adapter, rows)
        base, _ = self._scores(self.base, rows)
        self.policy.load_adapter_state(own)
        inputs = [LossInputs.from_packed(row, row.sampling_logprobs).trained() for row in rows]
        sampled = torch.cat([of_row.sampling_logprobs for of_row in inputs])
        return Measurement(
            reward,
            kl_base=float((policy - base).double().mean()),
            entropy=float(entropy.double().mean()),
            sampler_learner_difference=float((sampled - policy).abs().max()),
        )

    @torch.no_grad()
    def _scores(self, adapter: Adapter, rows: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logprobs and entropy [N] of the sampled tokens of all rows, on the CPU."""
        self.policy.load_adapter_state(adapter)
        logprobs, entropies = [], []
        for row in rows:
            inputs = LossInputs.from_packed(row, *self.policy.logprobs(row, with_entropy=True, trained_only=True))
            trained = inputs.trained()
            assert trained.entropy is not None, "the policy was asked for it"
            logprobs.append(trained.policy_logprobs)
            entropies.append(trained.entropy)
        return torch.cat(logprobs), torch.cat(entropies)


def sample_groups(
    ruler: Ruler, version: int, adapter: Adapter, tasks: Sequence[Any], group_size: int, stream: str
) -> list[TrajectoryGroup]:
    """Roll out `version` on each task, in order. Raise RuntimeError if a rollout fails: runs would differ in tasks."""
    ruler.sampler.load(version, adapter)
    ruler.sampler.reseed(stream)

    async def roll_out() -> list[TrajectoryGroup]:
        timeout_s = ruler.settings.rollout_timeout_s
        rolled = await asyncio.gather(
            *(roll_out_group(lambda _: ruler.sampler, ruler.environment, task, group_size, timeout_s) for task in tasks)
        )
        for task, outcome in zip(tasks, rolled, strict=True):
            for failure in outcome.failures:
                raise RuntimeError(f"A rollout of task {task!r} failed, {failure}") from failure.error
        return [outcome.group for outcome in rolled]

    return asyncio.run(roll_out())
