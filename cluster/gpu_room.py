"""Whether actors that need whole GPUs fit the nodes of a cluster, in whatever order Ray places them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Demand:
    """Actors that need GPUs at the same time. A unit of N GPUs needs them on one node."""

    engines: Mapping[int, int] = field(default_factory=dict)
    """Number of units by their size, placed first."""
    learners: Mapping[int, int] = field(default_factory=dict)
    """The same of learners, which follow. Those of a group that stays on one node are one unit."""
    fractions: Sequence[float] = ()
    """Parts of a GPU, each on any node. Ray puts those that fit together onto one GPU."""
    spread: Sequence[int] = ()
    """Sizes of groups of learners, of one GPU each, in which every learner needs a node of its own."""

    def num_gpus(self, nodes: Sequence[int]) -> int:
        """Return how many whole GPUs this takes at most."""
        units = (*self.engines.items(), *self.learners.items())
        return sum(size * count for size, count in units) + sum(self.spread) + self._of_fractions(nodes)

    def _of_fractions(self, nodes: Sequence[int]) -> int:
        if not self.fractions:
            return 0
        # Ray fills a GPU that is in use before it takes another one, so each but the last holds at least this many.
        # With several nodes it may prefer an empty GPU, which then isn't left for a whole unit.
        has_units = bool(self.engines or self.learners or self.spread)
        together = 1 if len(nodes) > 1 and has_units else math.floor(1 / max(self.fractions) + 1e-9)
        return math.ceil(len(self.fractions) / together)

    def fits(self, nodes: Sequence[int]) -> bool:
        """Return whether all of it fits at once on nodes with these numbers of GPUs.

        On several nodes, a small unit may be put where a large one would have fitted. In the worst case, a unit of s
        GPUs blocks ceil(s / t) places for units of t GPUs. Only combinations that fit even then are accepted.
        """
        if self.num_gpus(nodes) > sum(nodes):
            return False
        return (
            _fit(self.engines, nodes)
            and _fit({**self.engines, **_larger(self.learners, self.engines)}, nodes)
            and all(self._spreads(count, nodes) for count in self.spread)
        )

    def _spreads(self, count: int, nodes: Sequence[int]) -> bool:
        """Return whether `count` nodes have a free GPU even if everything else fills whole nodes."""
        others, free = self.num_gpus(nodes) - count, 0
        for node in sorted(nodes):
            taken = min(node, others)
            others -= taken
            free += node > taken
        return free >= count


def _larger(learners: Mapping[int, int], engines: Mapping[int, int]) -> dict[int, int]:
    """Return units of engines and learners by size, without learners of one GPU: any free GPU suits them."""
    return {size: count + engines.get(size, 0) for size, count in learners.items() if size > 1}


def _fit(units: Mapping[int, int], nodes: Sequence[int]) -> bool:
    if len(nodes) <= 1:
        return True  # the sum is compared elsewhere
    return all(
        sum(math.ceil(size / place) * count for size, count in units.items()) <= sum(node // place for node in nodes)
        for place in units
    )
