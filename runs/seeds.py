"""Seeds of a run's requests: each rollout samples with a seed of its own, derived from the one that the task gives.

With one seed for all, the rollouts of a group would be identical, and nothing could be learnt from them. Turn t of
rollout r of a group has the seed

    first 48 bits of SHA-256("{seed}/{group}/{t}") + r

where `group` is `train/{batch}/{place of its task}/{attempt}` or `eval/{place of its task}/{attempt}`. All versions are
evaluated with the same seeds, which makes them easier to compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

SEED_BITS = 48
"""JSON's numbers are exact up to 53 bits in every language."""


def given_seed(body: Mapping[str, Any]) -> int | None:
    """Return the seed of a request; None if it has none, or one that the service will reject."""
    seed = body.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def turn_seed(seed: int, group: str, turn: int) -> int:
    """Return the seed of rollout 0 for a turn."""
    digest = hashlib.sha256(f"{seed}/{group}/{turn}".encode()).digest()
    return int.from_bytes(digest[: SEED_BITS // 8])


def adjacent(numbers: Iterable[int]) -> list[range]:
    """Return the numbers, all different, as ranges without gaps."""
    ranges: list[range] = []
    for number in sorted(numbers):
        if ranges and ranges[-1].stop == number:
            ranges[-1] = range(ranges[-1].start, number + 1)
        else:
            ranges.append(range(number, number + 1))
    return ranges
