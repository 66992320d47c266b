"""How old the policy was that sampled a job's trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from tandem.rl.messages import Choice
from tandem.rl.trajectories import Trajectory, TrajectoryGroup


def sampled_version(trajectory: Trajectory) -> int | None:
    """The step of the policy version that the trajectory began with; None where nothing tells it.

    `initial_policy_version` says it; without it, the `policy_version` that the service writes into every choice.
    """
    if trajectory.initial_policy_version is not None:
        return trajectory.initial_policy_version
    versions = [
        turn.policy_version
        for history in trajectory.histories
        for turn in history.messages_and_choices
        if isinstance(turn, Choice) and turn.policy_version is not None
    ]
    return min(versions, default=None)


def policy_lag(groups: Sequence[TrajectoryGroup], current: int) -> dict[str, float]:
    """`policy_lag/mean` and `policy_lag/max` over the trajectories whose version is known; empty without any.

    The lag is the number of steps from the version that sampled to `current`, the one that training starts from.
    """
    versions = [sampled_version(trajectory) for group in groups for trajectory in group.trajectories]
    lags = [current - version for version in versions if version is not None]
    if not lags:
        return {}
    return {"policy_lag/mean": fmean(lags), "policy_lag/max": float(max(lags))}
