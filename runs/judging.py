"""A judge's scores as the rewards of a group's rollouts."""

from __future__ import annotations

import os
import time
from typing import Any

from openai import AsyncOpenAI

from tandem.client import JudgeError, Score, judge_group
from tandem.client.judging import DEFAULT_RUBRIC
from tandem.rl.environments.rollouts import RolledOutGroup, RolloutFailure
from tandem.rl.trajectories import Trajectory
from tandem.runs.config import JudgeConfig
from tandem.runs.errors import TaskFileError

RETRIES_ELSEWHERE = 5
"""Of the OpenAI client of an endpoint other than the service, whose requests `Patience` doesn't repeat."""


class GroupJudge:
    """Scores the rollouts of each group relative to each other.

    A group that the judge can't score has no trajectories left: its rollouts count as failed, with the judge's error.
    """

    def __init__(self, settings: JudgeConfig, openai: AsyncOpenAI):
        """`openai` is the client of the service. Raise TaskFileError if another endpoint's key is missing."""
        self._settings = settings
        self._openai = openai if settings.url is None else _elsewhere(settings)

    async def __call__(self, rolled_out: RolledOutGroup, label: str) -> RolledOutGroup:
        """Return the group with its rewards. `label` names it in errors."""
        settings, trajectories = self._settings, rolled_out.group.trajectories
        if not trajectories:
            return rolled_out
        began = time.monotonic()
        sampling: dict[str, Any] = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        try:
            scores = await judge_group(
                self._openai,
                settings.model,
                trajectories,
                group=label,
                attempts=settings.attempts,
                rubric=settings.rubric or DEFAULT_RUBRIC,
                tools=trajectories[0].tools,
                **{name: value for name, value in sampling.items() if value is not None},
                **settings.sampling,
            )
        except JudgeError as error:
            elapsed_s = time.monotonic() - began
            failures = (RolloutFailure(number, error, elapsed_s) for number in range(len(trajectories)))
            group = rolled_out.group.model_copy(update={"trajectories": []})
            return RolledOutGroup(group, (*rolled_out.failures, *failures), rolled_out.dropped_metrics)
        judged = [self._rewarded(*pair) for pair in zip(trajectories, scores, strict=True)]
        group = rolled_out.group.model_copy(update={"trajectories": judged})
        return RolledOutGroup(group, rolled_out.failures, rolled_out.dropped_metrics)

    def _rewarded(self, trajectory: Trajectory, score: Score) -> Trajectory:
        own = trajectory.reward if self._settings.add_to_reward else 0.0
        return trajectory.model_copy(
            update={
                "reward": own + self._settings.weight * score.score,
                "metrics": {
                    **trajectory.metrics,
                    "judge_score": score.score,
                    "environment_reward": trajectory.reward,
                },
                "logs": [*trajectory.logs, f"The judge {self._settings.model}: {score.explanation}"],
            }
        )


def _elsewhere(settings: JudgeConfig) -> AsyncOpenAI:
    key = os.environ.get(settings.api_key_variable)
    if not key:
        raise TaskFileError(
            f"The judge at {settings.url} needs a key: set the environment variable {settings.api_key_variable}, or "
            "name another one in judge.api_key_variable."
        )
    return AsyncOpenAI(base_url=settings.url, api_key=key, max_retries=RETRIES_ELSEWHERE)
