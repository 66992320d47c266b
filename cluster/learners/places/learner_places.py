"""The places of a group's ranks: bundles of its own, and rooms on the GPUs of engine replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tandem.cluster.config import BaseModelConfig
from tandem.cluster.errors import StageError
from tandem.cluster.learners.places.engine_places import EnginePlace, EnginePlaces
from tandem.cluster.placement import BasePlacement
from tandem.cluster.processes.waiting import WAIT_PERIOD_S, OnWait

PLACEMENT_S = 3.0  # how long Ray may take to place learners that there is room for
ENGINES_S = 30.0  # how long Serve may take to place engines, before they are missed
ENGINES_FIRST_S = 60.0  # how long learners wait for engines that could find no room after them
EMPTY = {"CPU": 0.01}  # Ray makes no bundle without resources
LabelSelector = Callable[[Mapping[str, float], int], list[dict[str, str]] | None]
"""Takes a bundle and a number of them. Returns Ray's label selector for each, None for any node."""


def anywhere(bundle: Mapping[str, float], count: int) -> None:
    """Let learners be on any node."""


@dataclass(frozen=True)
class _Lack:
    """Something that learners wait for."""

    text: Callable[[], str]
    remedy: str
    usual_s: float
    """No user needs to hear of a shorter wait."""


class LearnerPlaces:
    """Finds a place for each rank.

    places = LearnerPlaces(base, placed, engines, deadline_s)
    strategies = places.take(on_wait)      # one for each rank
    places.give_back()
    """

    def __init__(
        self,
        base: BaseModelConfig,
        placed: BasePlacement | None = None,
        engines: EnginePlaces | None = None,
        engines_first: bool = False,
        deadline_s: float = 600.0,
    ):
        """Prepare the search.

        Args:
            placed: the base model's GPUs. None: each learner takes those of its configuration.
            engines: where engines run; needed if learners share their GPUs, or are placed after them.
            engines_first: wait for a while until all engines have been placed.
            deadline_s: give up after this time.
        """
        num_gpus = base.learners.num_gpus or 0
        self._base, self._deadline_s = base, deadline_s
        self._placed = placed or BasePlacement(learner_gpus=num_gpus, learner_bundle_gpus=num_gpus)
        self._engines, self._engines_first = engines, engines_first
        self._group: PlacementGroup | None = None
        self.waiting_for: str | None = None
        """Text about the resources or engines that are missing at present."""

    @property
    def num_gpus(self) -> float:
        """Ray GPUs of each learner."""
        return self._placed.learner_gpus

    def take(self, on_wait: OnWait, label_selector: LabelSelector = anywhere) -> list[PlacementGroupSchedulingStrategy]:
        """Return where Ray is to start each rank. Raise StageError if there is no room before the deadline.

        `label_selector`: which nodes may have the ranks that share no GPU with an engine.
        """
        began = time.monotonic()
        if self._engines is not None and self._engines_first:
            self._wait_for_engines(self._engines, on_wait)
        settings, beside = self._base.learners, self._placed.beside
        num_alone = settings.count - sum(beside.values())
        strategies = []
        if num_alone:
            group = self._bundles(num_alone, label_selector)
            lack = _Lack(lambda: self._no_room(num_alone), _MORE_ROOM, PLACEMENT_S)
            self._wait(lambda: group.wait(WAIT_PERIOD_S), lack, began, on_wait)
            strategies += [PlacementGroupSchedulingStrategy(group, rank) for rank in range(num_alone)]
        if beside:
            assert self._engines is not None, "learners beside engines need to know where these run"
            strategies += [_in_bundle_of(place) for place in self._beside(self._engines, began, on_wait)]
        self.waiting_for = None
        return strategies

    def give_back(self) -> None:
        """Release the places. The actors must have been ended."""
        group, self._group = self._group, None
        if group is not None:
            remove_placement_group(group)
        if self._engines is not None:
            self._engines.give_back(self._base.name)

    @property
    def _bundle(self) -> dict[str, float]:
        wanted = {"CPU": self._base.learners.num_cpus, "GPU": self._placed.learner_bundle_gpus}
        return {kind: amount for kind, amount in wanted.items() if amount} or EMPTY

    def _bundles(self, count: int, label_selector: LabelSelector) -> PlacementGroup:
        labels = label_selector(self._bundle, count)
        self._group = placement_group(
            [self._bundle] * count,
            strategy=self._base.learners.placement,
            bundle_label_selector=labels,  # type: ignore[arg-type]  # Ray's own default is None
        )
        return self._group

    def _beside(self, engines: EnginePlaces, began: float, on_wait: OnWait) -> list[EnginePlace]:
        places: list[EnginePlace] = []

        def found() -> bool:
            taken = engines.take(self._base.name, self._placed.beside, self._base.learners.placement)
            places.extend(taken or ())
            if taken is None:
                time.sleep(WAIT_PERIOD_S)
            return taken is not None

        self._wait(found, _Lack(lambda: self._no_engines(engines), _NO_ENGINES, ENGINES_S), began, on_wait)
        return places

    def _wait(self, is_done: Callable[[], bool], lack: _Lack, began: float, on_wait: OnWait) -> None:
        """Wait until `is_done`, a call of which takes about `WAIT_PERIOD_S`."""
        first = time.monotonic()
        while not is_done():
            now = time.monotonic()
            is_late, text = now - began > self._deadline_s, lack.text()
            if is_late or now - first > lack.usual_s:
                self.waiting_for = text
            on_wait()
            if is_late:
                raise StageError(
                    "start_learners", f"after {self._deadline_s:g} s, {text}.", lack.remedy, retryable=True
                )

    def _wait_for_engines(self, engines: EnginePlaces, on_wait: OnWait) -> None:
        """Let the engines be placed first. An engine that isn't placed for long doesn't keep the learners waiting."""
        name, wanted = self._base.name, self._base.engine.replicas
        deadline = time.monotonic() + min(ENGINES_FIRST_S, self._deadline_s)
        while engines.running().get(name, 0) < wanted and time.monotonic() < deadline:
            on_wait()
            time.sleep(WAIT_PERIOD_S)

    def _no_room(self, count: int) -> str:
        available, total = ray.available_resources(), ray.cluster_resources()
        return (
            f"the cluster has no room for {count} learners of {_amounts(self._bundle)} each"
            f"{_WHERE.get(self._base.learners.placement, '')} (available: {_amounts(available)}, "
            f"in all: {_amounts(total)}, nodes: {sum(node['Alive'] for node in ray.nodes())})"
        )

    def _no_engines(self, engines: EnginePlaces) -> str:
        running, counts = engines.running(), self._placed.beside
        of = " and ".join(f"{count} of {name} ({running.get(name, 0)} placed)" for name, count in counts.items())
        return (
            f"{sum(counts.values())} learners share GPUs with engines, which haven't been placed: {of} (available: "
            f"{_amounts(ray.available_resources())}, in all: {_amounts(ray.cluster_resources())})"
        )


_WHERE = {"STRICT_SPREAD": " on nodes of their own", "STRICT_PACK": " on one node"}
_MORE_ROOM = "Add nodes, lower learners.count, num_cpus or num_gpus, or change learners.placement."
_NO_ENGINES = "See `GET /health` for the engines, and the log of their replicas; add nodes if they have no room."


def _in_bundle_of(place: EnginePlace) -> PlacementGroupSchedulingStrategy:
    assert place.bundle is not None
    return PlacementGroupSchedulingStrategy(PlacementGroup(PlacementGroupID.from_hex(place.bundle)), 0)


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{kind} {resources.get(kind, 0):g}" for kind in ("CPU", "GPU"))
