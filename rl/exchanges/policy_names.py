"""The names under which rollouts ask for the policy."""

from __future__ import annotations

import re
from typing import NamedTuple

PREFIX = "wandb-artifact:///"
_STEP = re.compile(r"(?P<base>.*?)(?::step|@)(?P<step>[0-9]{1,10})", re.DOTALL)


class PolicyName(NamedTuple):
    """A model's name without the version, and the step of the version that it pins, if any."""

    base: str
    step: int | None


def parse(name: str) -> PolicyName:
    """Split `entity/project/name:stepN`, or the other ways to write it."""
    plain = name.removeprefix(PREFIX)
    pinned = _STEP.fullmatch(plain)
    return PolicyName(pinned["base"], int(pinned["step"])) if pinned else PolicyName(plain, None)


def is_policy(name: str, policy: str) -> bool:
    """Return True if `name` means any version of `policy`, which is entity/project/name."""
    return parse(name).base in (policy, policy.rpartition("/")[2])
