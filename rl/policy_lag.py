"""The age of the policy that sampled a job's trajectories."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from tandem.rl.tokens.messages import Choice
from tandem.rl.trajectories import Trajectory


def sampled_version(trajectory: Trajectory) -> int | None:
    """Return the step of the policy version at the start of the trajectory; None if unknown.

    It is `initial_policy_version`, else the lowest `policy_version` that the service wrote into the choices.
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


def policy_lag(versions: Iterable[int | None], current: int) -> dict[str, float]:
    """Return `policy_lag/mean` and `policy_lag/max` of trajectories sampled by `versions`; empty if none is known.

    The lag is the number of steps from the sampling version to `current`, the version that training starts from.
    """
    lags = [current - version for version in versions if version is not None]
    if not lags:
        return {}
    return {"policy_lag/mean": fmean(lags), "policy_lag/max": float(max(lags))}
