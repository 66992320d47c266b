"""What a batch, a training job and an evaluation amount to, as flat rows of numbers by name."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from tandem.rl.environments.rollouts import RolledOutGroup
from tandem.rl.tokens.messages import Choice
from tandem.rl.trajectories import Trajectory
from tandem.runs.errors import PolicyLagError


def choices_of(trajectory: Trajectory) -> list[Choice]:
    """Its sampled turns, of all its histories."""
    return [
        turn for history in trajectory.histories for turn in history.messages_and_choices if isinstance(turn, Choice)
    ]


def rollout_metrics(groups: Sequence[RolledOutGroup]) -> dict[str, float]:
    """Of rewards, tokens, failures by cause, and of what the environment measured.

    `reward/std` is over all rollouts, `reward/std_in_group` the mean over groups: without it there is no advantage.
    """
    trajectories = [trajectory for group in groups for trajectory in group.group.trajectories]
    failures = [failure for group in groups for failure in group.failures]
    rewards = [trajectory.reward for trajectory in trajectories]
    spreads = [pstdev(t.reward for t in group.group.trajectories) for group in groups if group.group.trajectories]
    choices = [choice for trajectory in trajectories for choice in choices_of(trajectory)]
    metrics: dict[str, float] = {
        "rollouts/num": len(trajectories),
        "rollouts/failed": len(failures),
        "rollouts/turns": len(choices),
        "rollouts/cut_off": sum(choice.finish_reason == "length" for choice in choices),
        "tokens/prompt": sum(len(choice.prompt_token_ids or ()) for choice in choices),
        "tokens/completion": sum(len(choice.token_ids or ()) for choice in choices),
    }
    if rewards:
        metrics |= {"reward/mean": fmean(rewards), "reward/std": pstdev(rewards)}
        metrics |= {"reward/min": min(rewards), "reward/max": max(rewards), "reward/std_in_group": fmean(spreads)}
    causes = Counter(type(failure.error).__name__ for failure in failures)
    metrics |= {f"rollouts/failed/{cause}": number for cause, number in sorted(causes.items())}
    own = _means(trajectory.metrics for trajectory in trajectories)
    return metrics | {f"environment/{name}": value for name, value in own.items()}


def loss_metrics(gradient_steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over a job's gradient steps, as the service's events have them; of `data/step_*`, which count, sums."""
    sums: dict[str, float] = {}
    for name in sorted({name for step in gradient_steps for name in step if name.startswith("data/step_")}):
        sums[name.replace("data/step_", "data/")] = sum(step.get(name, 0) for step in gradient_steps)
    means = _means({k: v for k, v in step.items() if not k.startswith("data/step_")} for step in gradient_steps)
    return means | sums


def oldest_versions(groups: Sequence[RolledOutGroup]) -> list[int]:
    """For each trajectory, the oldest version that sampled any of its turns. Raises PolicyLagError when a turn doesn't
    say which one did, because then nothing bounds its age."""
    versions = []
    for number, group in enumerate(groups):
        for index, trajectory in enumerate(group.group.trajectories):
            of_turns = [choice.policy_version for choice in choices_of(trajectory)]
            if None in of_turns:
                raise PolicyLagError(
                    f"Group {number}, trajectory {index}, turn {of_turns.index(None)}: the choice has no "
                    "policy_version, so its policy lag isn't known. The environment must put choices into the "
                    "trajectory as the service returned them: what chat() returns, or choice.model_dump()."
                )
            versions.append(min(of_turns))
    return versions


def causes(groups: Sequence[RolledOutGroup], limit: int = 3) -> str:
    """The most frequent causes of failures, in words, with how often each was met."""
    failures = [failure for group in groups for failure in group.failures]
    counted = Counter(f"{type(f.error).__name__}: {' '.join(str(f.error).split())[:200]}" for f in failures)
    return "; ".join(f"{number} × {cause}" for cause, number in counted.most_common(limit))


def _means(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """By name, over the rows that have it. What JSON can't hold is left out."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                values[name].append(float(value))
    return {name: fmean(found) for name, found in values.items()}
