"""For rollout code: record which policy versions sampled a trajectory. Needs the standard library alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tag_policy_versions(trajectory: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a trajectory, in its wire format, with `initial_policy_version` and `final_policy_version`.

    They are the versions of the first and last sampled turn, which the service writes into every choice; the policy may
    be updated during a rollout. Existing tags stay, and without versions in the choices nothing is added.
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
