"""The age of the policy that sampled a job's trajectories."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean


def policy_lag(versions: Iterable[int | None], current: int) -> dict[str, float]:
    """Return `policy_lag/mean` and `policy_lag/max` of trajectories sampled by `versions`; empty if none is known.

    The lag is the number of steps from the sampling version to `current`, the version that training starts from.
    """
    lags = [current - version for version in versions if version is not None]
    if not lags:
        return {}
    return {"policy_lag/mean": fmean(lags), "policy_lag/max": float(max(lags))}
