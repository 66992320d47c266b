"""Metrics of a batch, a training job and an evaluation, as flat rows of numbers by name."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from statistics import fmean, pstdev
from typing import Any

from tandem.client import Event
from tandem.rl.advantages import reward_std_dev
from tandem.rl.environments.rollouts import RolledOutGroup
from tandem.rl.environments.turns import turns_of
from tandem.rl.plain_data import finite_number
from tandem.runs.errors import PolicyLagError


def rollout_metrics(groups: Sequence[RolledOutGroup]) -> dict[str, float]:
    """Return metrics of rewards, tokens and failures by cause, and the environment's own.

    `reward/std` is over all rollouts, `reward/std_in_group` the mean over groups; if that is 0, there is no advantage.
    """
    trajectories = [trajectory for group in groups for trajectory in group.group.trajectories]
    failures = [failure for group in groups for failure in group.failures]
    rewards = [trajectory.reward for trajectory in trajectories]
    by_group = [[t.reward for t in group.group.trajectories] for group in groups if group.group.trajectories]
    spreads = [reward_std_dev(of_group) for of_group in by_group]
    turns = [turn for trajectory in trajectories for turn in turns_of(trajectory)]
    metrics: dict[str, float] = {
        "rollouts/num": len(trajectories),
        "rollouts/failed": len(failures),
        "rollouts/turns": len(turns),
        "rollouts/cut_off": sum(turn.is_cut_off for turn in turns),
        "rollouts/identical_groups": sum(map(is_identical, groups)),
        "tokens/prompt": sum(turn.num_prompt_tokens for turn in turns),
        "tokens/completion": sum(turn.num_tokens for turn in turns),
    }
    if rewards:
        metrics |= {"reward/mean": fmean(rewards), "reward/std": pstdev(rewards)}
        metrics |= {"reward/min": min(rewards), "reward/max": max(rewards), "reward/std_in_group": fmean(spreads)}
    causes = Counter(type(failure.error).__name__ for failure in failures)
    metrics |= {f"rollouts/failed/{cause}": number for cause, number in sorted(causes.items())}
    left_out = Counter(name for group in groups for name in group.dropped_metrics)
    metrics |= {f"rollouts/metric_left_out/{name}": number for name, number in sorted(left_out.items())}
    own = _means(trajectory.metrics for trajectory in trajectories)
    return metrics | {f"environment/{name}": value for name, value in own.items()}


def is_identical(group: RolledOutGroup) -> bool:
    """Return True if all rollouts of a group, at least two, sampled the same tokens."""
    sampled = [[list(turn.sampled) for turn in turns_of(trajectory)] for trajectory in group.group.trajectories]
    return len(sampled) > 1 and all(turns == sampled[0] for turns in sampled[1:])


def loss_metrics(gradient_steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return means over a job's gradient steps, and sums of the counts `data/step_*`."""
    sums: dict[str, float] = {}
    for name in sorted({name for step in gradient_steps for name in step if name.startswith("data/step_")}):
        sums[name.replace("data/step_", "data/")] = sum(step.get(name, 0) for step in gradient_steps)
    means = _means({k: v for k, v in step.items() if not k.startswith("data/step_")} for step in gradient_steps)
    return means | sums


def training_counts(events: Iterable[Event]) -> dict[str, float]:
    """Return from the events of a job how much of its batch trains, and how many trajectories and tokens don't, by
    reason."""
    counts: dict[str, float] = {}
    for event in events:
        if event.type == "training_started":
            of_event = {name: f"num_trained_{name}" for name in ("groups", "trajectories", "tokens")}
            counts |= {f"trained/{name}": event.data[key] for name, key in of_event.items() if key in event.data}
            of_tokens = {name: f"num_{name}_tokens" for name in ("retokenised", "untrainable")}
            counts |= {f"tokens/{name}": event.data[key] for name, key in of_tokens.items() if key in event.data}
        elif event.type == "warning" and event.data.get("kind") in ("nothing_trained", "partly_trained"):
            counts |= {f"not_trained/{reason}": number for reason, number in event.data["counts"].items()}
        elif event.type == "warning" and event.data.get("kind") == "untrainable_tokens":
            counts |= {f"tokens/untrainable/{reason}": number for reason, number in event.data["counts"].items()}
    return counts


def oldest_versions(groups: Sequence[RolledOutGroup]) -> list[int]:
    """Return for each trajectory the oldest version that sampled any of its turns.

    Raise PolicyLagError for a turn without a version, because nothing bounds its age."""
    versions = []
    for number, group in enumerate(groups):
        for index, trajectory in enumerate(group.group.trajectories):
            turns = turns_of(trajectory)
            known = [turn.policy_version for turn in turns if turn.policy_version is not None]
            if len(known) < len(turns):
                unknown = next(place for place, turn in enumerate(turns) if turn.policy_version is None)
                raise PolicyLagError(
                    f"Group {number}, trajectory {index}, turn {unknown}: the choice has no "
                    "policy_version, so its policy lag isn't known. The environment must put choices into the "
                    "trajectory as the service returned them: the results of chat(), or choice.model_dump(); or a "
                    "capture's exchanges with the service itself."
                )
            versions.append(min(known))
    return versions


def causes(groups: Sequence[RolledOutGroup], limit: int = 3) -> str:
    """Return the most frequent causes of failures as text, each with its count."""
    failures = [failure for group in groups for failure in group.failures]
    counted = Counter(failure.cause[:300] for failure in failures)
    return "; ".join(f"{number} × {cause}" for cause, number in counted.most_common(limit))


def _means(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each name over the rows that have it, without numbers that JSON can't hold."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if (finite := finite_number(value)) is not None:
                values[name].append(float(finite))
    return {name: _mean(found) for name, found in values.items()}


def _mean(values: Sequence[float]) -> float:
    try:
        return fmean(values)
    except OverflowError:  # in the sum of large values
        return fsum(value / len(values) for value in values)
