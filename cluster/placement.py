"""Decide which learners and engines have a GPU of their own, and which share one.

A GPU holds at most one learner and one engine. With as many GPUs as learners and engines, each has its own. With
fewer, as few as possible share: first learners with engines of their own base model, in the order of the
configuration, then with those of other base models. An engine of several GPUs never shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tandem.cluster.config import BaseModelConfig, TandemConfig
from tandem.cluster.gpu_refusals import PlacementError, check_amounts, check_sleep, limit_not_kept, no_gpu_for, refuse
from tandem.cluster.gpu_room import Demand

__all__ = ["BasePlacement", "Placement", "PlacementError", "place"]

HALF = 0.5
ROUNDING = 1e-9
Pairs = Counter[tuple[str, str]]
"""GPUs that a learner shares with an engine, by the base models of the two."""


@dataclass(frozen=True)
class BasePlacement:
    """The GPUs of one base model."""

    learner_gpus: float = 0.0
    """Ray GPUs that each learner takes. 0: a CPU; below 1: a part of a GPU."""
    engine_gpus: float = 0.0
    """The same for each engine replica."""
    beside: dict[str, int] = field(default_factory=dict)
    """How many learners share a GPU with an engine, by the base model of the engine."""
    guests: dict[str, int] = field(default_factory=dict)
    """How many replicas of the engine share a GPU with a learner, by the base model of the learner. Which ones is
    known only once they run, so each replica must leave room for a learner."""
    learner_bundle_gpus: float = 0.0
    """GPUs that are reserved for each learner beside no engine: all of one GPU, unless Ray may put others onto it."""
    engine_bundle: dict[str, float] | None = None
    """Ray resources that each replica reserves for itself and a learner; None: it reserves only its own."""

    @property
    def learners_share(self) -> bool:
        """True if learners of this base model share GPUs with engines."""
        return bool(self.beside)

    @property
    def engine_shares(self) -> bool:
        """True if replicas of this base model's engine share GPUs with learners."""
        return bool(self.guests)

    @property
    def shares_gpu(self) -> bool:
        return self.learners_share or self.engine_shares

    def shares_with_others(self, name: str) -> bool:
        """Return whether parts of other base models than this one, of the given name, are on the same GPUs."""
        return bool({*self.beside, *self.guests} - {name})


@dataclass(frozen=True)
class Placement:
    """The configuration with every `num_gpus` set, and how GPUs are shared."""

    config: TandemConfig
    of: dict[str, BasePlacement]
    """By the name of the base model."""
    engines_first: bool = False
    """True if learners that are placed before the engines could leave no room for one of them."""

    @property
    def base_models(self) -> tuple[BaseModelConfig, ...]:
        return self.config.base_models


def place(config: TandemConfig, gpus_of_nodes: int | Sequence[int], is_fixed: bool = False) -> Placement:
    """Return the placement on nodes that have these numbers of GPUs; one number stands for one node.

    Without GPUs, everything whose `num_gpus` isn't set runs on CPUs. Values that are set are kept. A configuration that
    sets all of them isn't compared with the nodes, because more may join, unless the cluster `is_fixed`.

    Raises PlacementError, with the numbers and what to change, if not everything fits on whole GPUs at once.
    """
    nodes = [number for number in ([gpus_of_nodes] if isinstance(gpus_of_nodes, int) else gpus_of_nodes) if number]
    for base in config.base_models:
        check_amounts(base)
    wanted = _wanted(config.base_models, nodes)
    if all(part.is_set for part in wanted) and not is_fixed:
        pairs = _set_pairs(wanted)
        for part in wanted:
            if not _bundles_keep_limit(part, pairs, nodes):
                raise limit_not_kept(part.config, max(nodes))
    else:
        found = _pairs_that_fit(wanted, nodes)
        if found is None:
            raise refuse(
                config.base_models,
                _demand(wanted, Counter(_all_pairs(wanted))).num_gpus(nodes),
                nodes,
                lambda bases: _pairs_that_fit(_wanted(bases, nodes), nodes) is not None,
            )
        pairs = found
    of = {part.name: _base_placement(part, wanted, pairs) for part in wanted}
    for part in wanted:
        placed = of[part.name]
        if placed.engine_gpus:
            check_sleep(part.config, bool(placed.guests), placed.shares_with_others(part.name))
    bases = tuple(_with_gpus(part.config, of[part.name]) for part in wanted)
    return Placement(config.model_copy(update={"base_models": bases}), of, _engines_first(wanted))


@dataclass(frozen=True)
class _Wanted:
    """The GPUs that a base model wants. Counts are 0 for a part that runs on CPUs."""

    config: BaseModelConfig
    num_learners: int
    num_engines: int
    learner_gpus: int
    """Whole GPUs that a learner beside no engine needs."""
    engine_gpus: int
    learner_part: float
    """The part of a shared GPU. 0: doesn't share."""
    engine_part: float

    @property
    def is_set(self) -> bool:
        return self.config.learners.num_gpus is not None and self.config.engine.num_gpus is not None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def has_set_parts(self) -> bool:
        """True if the configuration names the parts of a GPU that a learner and an engine share."""
        learners, engine = self.config.learners.num_gpus or 0, self.config.engine.num_gpus or 0
        return 0 < learners < 1 and 0 < engine < 1 and learners + engine <= 1 + ROUNDING

    @property
    def is_one_part(self) -> bool:
        """True if a learner and an engine take only a named part of one GPU together."""
        return self.has_set_parts and self.num_learners == self.num_engines == 1


def _wanted(bases: Sequence[BaseModelConfig], nodes: Sequence[int]) -> list[_Wanted]:
    found = []
    for base in bases:
        learners, engine = base.learners.num_gpus, base.engine.num_gpus
        if learners is None and (base.learners.device == "cpu" or not nodes):
            learners = 0
            if base.learners.device == "cuda":
                raise no_gpu_for(base)
        if engine is None and not nodes:
            engine = 0
        learner_part, engine_part = _part(learners), _part(engine) if base.engine.tensor_parallel_size == 1 else 0.0
        if learners is None and engine and engine < 1:
            learner_part = round(1 - engine, 4)
        if engine is None and engine_part and learners and learners < 1:
            engine_part = round(1 - learners, 4)
        found.append(
            _Wanted(
                base,
                num_learners=base.learners.count if learners != 0 else 0,
                num_engines=base.engine.replicas if engine != 0 else 0,
                learner_gpus=max(1, int(learners or 1)),
                engine_gpus=max(1, int(engine or base.engine.tensor_parallel_size)),
                learner_part=learner_part,
                engine_part=engine_part,
            )
        )
    return found


def _part(num_gpus: float | None) -> float:
    return HALF if num_gpus is None else num_gpus if num_gpus < 1 else 0.0


def _set_pairs(wanted: Sequence[_Wanted]) -> Pairs:
    """Return the pairs of base models whose configuration names the parts, which share whatever the cluster has."""
    return Counter({(b.name, b.name): min(b.num_learners, b.num_engines) for b in wanted if b.has_set_parts})


def _all_pairs(wanted: Sequence[_Wanted]) -> Iterator[tuple[str, str]]:
    """Yield learner and engine, by base model, of every GPU that can be shared, in the order of preference."""
    learners = Counter({base.name: base.num_learners for base in wanted})
    engines = Counter({base.name: base.num_engines for base in wanted})
    own = [(base, base) for base in wanted]
    for a, b in [*own, *((a, b) for a in wanted for b in wanted if a is not b)]:
        if not (a.learner_part and b.engine_part and a.learner_part + b.engine_part <= 1 + ROUNDING):
            continue
        if a is not b and (a.is_one_part or b.is_one_part):
            continue  # its bundle has room for its own two only
        shared = min(learners[a.name], engines[b.name])
        learners[a.name] -= shared
        engines[b.name] -= shared
        yield from [(a.name, b.name)] * shared


def _pairs_that_fit(wanted: Sequence[_Wanted], nodes: Sequence[int]) -> Pairs | None:
    """Return the fewest pairs with which all fits, in the order of preference. None if it fits with none."""
    pairs = _set_pairs(wanted)
    rest = Counter(pairs)
    for pair in [None, *_all_pairs(wanted)]:
        if pair is not None and rest[pair]:
            rest[pair] -= 1
            continue
        if pair is not None:
            pairs[pair] += 1
        if _demand(wanted, pairs).fits(nodes) and all(_keeps_strategies(base, pairs, nodes) for base in wanted):
            return pairs
    return None


def _demand(wanted: Sequence[_Wanted], pairs: Pairs) -> Demand:
    engines: Counter[int] = Counter()
    learners: Counter[int] = Counter()
    fractions, spread = [], []
    for base in wanted:
        alone = base.num_learners - sum(count for (of, _), count in pairs.items() if of == base.name)
        is_shared = any(count for (_, of), count in pairs.items() if of == base.name)
        strategy = base.config.learners.placement
        if base.is_one_part:
            fractions.append(base.learner_part + base.engine_part)
        elif base.num_engines == 1 and 0 < (base.config.engine.num_gpus or 0) < 1 and not is_shared:
            fractions.append(base.engine_part)
        else:
            engines[base.engine_gpus] += base.num_engines
        if alone == base.num_learners == 1 and 0 < (base.config.learners.num_gpus or 0) < 1:
            fractions.append(base.learner_part)
        elif alone > 1 and strategy == "STRICT_PACK":
            learners[base.learner_gpus * alone] += 1
        elif alone > 1 and strategy == "STRICT_SPREAD" and base.learner_gpus == 1:
            spread.append(alone)
        else:
            learners[base.learner_gpus] += alone
    return Demand(+engines, +learners, fractions, spread)


def _keeps_strategies(base: _Wanted, pairs: Pairs, nodes: Sequence[int]) -> bool:
    """Return whether the replicas per node and the strategy of learners beside engines can be kept on any placement."""
    limit = base.config.engine.max_replicas_per_node
    if limit and sum(min(limit, node // base.engine_gpus) for node in nodes) < base.num_engines:
        return False
    if not _bundles_keep_limit(base, pairs, nodes):
        return False
    num_beside = sum(count for (of, _), count in pairs.items() if of == base.name)
    strategy = base.config.learners.placement
    if not num_beside or base.num_learners == 1 or not strategy.startswith("STRICT_"):
        return True
    fits = len(nodes) == 1 if strategy == "STRICT_PACK" else max(nodes) == 1
    return fits and num_beside == base.num_learners


def _bundles_keep_limit(base: _Wanted, pairs: Pairs, nodes: Sequence[int]) -> bool:
    """Return whether no node gets more replicas than it may.

    Ray Serve limits them only without bundles. With bundles, a GPU has one engine, so small nodes keep the limit.
    """
    limit = base.config.engine.max_replicas_per_node or base.num_engines
    return not _has_bundles(base, pairs) or base.num_engines <= limit or max(nodes, default=0) <= limit


def _has_bundles(base: _Wanted, pairs: Pairs) -> bool:
    """Return whether each replica reserves more than it takes: with a learner, or to stay apart from other replicas."""
    has_guests = any(count for (_, engine), count in pairs.items() if engine == base.name)
    return has_guests or (base.num_engines > 1 and 0 < (base.config.engine.num_gpus or 0) < 1)


def _engines_first(wanted: Sequence[_Wanted]) -> bool:
    on_gpus = [base for base in wanted if base.num_engines]
    return any(base.engine_gpus > 1 or base.config.engine.max_replicas_per_node for base in on_gpus)


def _base_placement(base: _Wanted, wanted: Sequence[_Wanted], pairs: Pairs) -> BasePlacement:
    beside = {of: count for (learners, of), count in pairs.items() if learners == base.name and count}
    guests = {of: count for (of, engine), count in pairs.items() if engine == base.name and count}
    settings, learners = base.config.engine, base.config.learners
    learner_gpus = base.learner_part if beside else learners.num_gpus or float(base.learner_gpus)
    engine_gpus = base.engine_part if guests else settings.num_gpus or float(base.engine_gpus)
    if not base.num_learners:
        learner_bundle_gpus = 0.0
    elif base.num_learners == 1 and (learners.num_gpus or 1) < 1:
        learner_bundle_gpus = learner_gpus  # the rest of the GPU is for others
    else:
        learner_bundle_gpus = float(base.learner_gpus)
    bundle = None
    if _has_bundles(base, pairs):
        guest_cpus = max((other.config.learners.num_cpus for other in wanted if other.name in guests), default=0)
        num_gpus = round(base.learner_part + base.engine_part, 4) if base.is_one_part else 1.0
        bundle = {"CPU": settings.num_cpus + guest_cpus, "GPU": num_gpus}
    return BasePlacement(
        learner_gpus=learner_gpus if base.num_learners else 0.0,
        engine_gpus=engine_gpus if base.num_engines else 0.0,
        beside=beside,
        guests=guests,
        learner_bundle_gpus=learner_bundle_gpus,
        engine_bundle={kind: amount for kind, amount in bundle.items() if amount} if bundle else None,
    )


def _with_gpus(base: BaseModelConfig, placed: BasePlacement) -> BaseModelConfig:
    learners = base.learners.model_copy(update={"num_gpus": placed.learner_gpus})
    engine = base.engine.model_copy(update={"num_gpus": placed.engine_gpus})
    return base.model_copy(update={"learners": learners, "engine": engine})
