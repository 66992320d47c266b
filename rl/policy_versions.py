"""For rollout code: which policy versions sampled a trajectory. Needs nothing but the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tag_policy_versions(trajectory: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a trajectory, as it is posted, with `initial_policy_version` and `final_policy_version`.

    They are the versions of its first and last sampled turn, which the service writes into every choice; a policy may
    be updated while an agent acts. Tags that are there already stay, and without a choice that knows its version
    nothing is added.
    """
    versions = [
        turn["policy_version"]
        for turn in trajectory["messages_and_choices"]
        if isinstance(turn, Mapping) and turn.get("policy_version") is not None
    ]
    tagged = dict(trajectory)
    if versions:
        for tag, version in (("initial_policy_version", versions[0]), ("final_policy_version", versions[-1])):
            if tagged.get(tag) is None:
                tagged[tag] = version
    return tagged
