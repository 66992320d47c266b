"""The GPUs of engine replicas that have room for a learner, and which learners have taken it."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

Strategy = str  # of Ray's placement groups


@dataclass(frozen=True)
class EnginePlace:
    """Where an engine replica runs."""

    actor: str
    """Its name in Ray."""
    node_id: str
    bundle: str | None
    """The placement group, as hexadecimal text, whose bundle 0 the replica shares with a learner."""


class EnginePlaces:
    """Gives the rooms beside engines to the learner groups of one process.

    places = EnginePlaces(find)
    beside = places.take("qwen", {"qwen": 2}, "PACK")   # None: the engines haven't been placed yet
    places.give_back("qwen")
    """

    def __init__(self, find: Callable[[], Mapping[str, Sequence[EnginePlace]]]):
        """`find` returns the running replicas by base model."""
        self._find = find
        self._lock = threading.Lock()
        self._taken: dict[str, list[str]] = defaultdict(list)  # bundles by the name of the group

    def running(self) -> dict[str, int]:
        """Return the number of replicas that have been placed, by base model."""
        return {name: len(places) for name, places in self._find().items()}

    def take(self, group: str, wanted: Mapping[str, int], strategy: Strategy) -> list[EnginePlace] | None:
        """Take as many rooms beside each engine as wanted. Return None, and take none, while there are too few."""
        found = self._find()
        with self._lock:
            taken = set(chain(*self._taken.values()))
            free = {name: [p for p in found.get(name, ()) if p.bundle and p.bundle not in taken] for name in wanted}
            if any(len(free[name]) < count for name, count in wanted.items()):
                return None
            places = list(chain(*(chosen(free[name], count, strategy) for name, count in wanted.items())))
            self._taken[group] = [place.bundle for place in places if place.bundle]
        return places

    def give_back(self, group: str) -> None:
        """Let others have the group's rooms. No error if it has none."""
        with self._lock:
            self._taken.pop(group, None)


def chosen(places: Sequence[EnginePlace], count: int, strategy: Strategy) -> list[EnginePlace]:
    """Return `count` places: on few nodes for PACK, on many for SPREAD."""
    on_node = Counter(place.node_id for place in places)
    before: Counter[str] = Counter()  # places of a node that come before this one
    ranked: list[tuple[int, int, EnginePlace]] = []
    for place in sorted(places, key=lambda place: (-on_node[place.node_id], place.node_id, place.actor)):
        ranked.append((before[place.node_id], len(ranked), place))
        before[place.node_id] += 1
    if strategy.endswith("SPREAD"):
        ranked.sort(key=lambda entry: entry[:2])
    return [place for _, _, place in ranked[:count]]
