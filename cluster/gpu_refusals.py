"""Why a configuration can't be placed on the GPUs of a cluster, and which changes would help."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tandem.cluster.config import BaseModelConfig
from tandem.cluster.errors import ClusterError

Bases = Sequence[BaseModelConfig]
Fits = Callable[[Bases], bool]


class PlacementError(ClusterError, ValueError):
    """The learners and engines of the configuration don't fit the GPUs. The message has the numbers and remedies."""


def check_amounts(base: BaseModelConfig) -> None:
    """Raise PlacementError for numbers of GPUs that no cluster can give."""
    learners, engine = base.learners, base.engine
    for part, amount in (("learners", learners.num_gpus), ("engine", engine.num_gpus)):
        if amount is not None and amount > 1 and amount != int(amount):
            raise PlacementError(
                f"{part}.num_gpus of {base.name} is {amount:g}: Ray gives out a part of one GPU or whole GPUs. Set a "
                "number below 1, or a whole one."
            )
    if learners.device == "cuda" and learners.num_gpus == 0:
        raise PlacementError(
            f"learners.device of {base.name} is cuda, but learners.num_gpus is 0: set num_gpus to 1, or the device to "
            "cpu or auto."
        )


def check_sleep(base: BaseModelConfig, shares: bool, shares_with_others: bool) -> None:
    """Raise PlacementError if the sleep of a base model's engine on GPUs gives its own learners no memory."""
    if not base.engine.sleep:
        return
    if shares_with_others:
        raise PlacementError(
            f"engine.sleep of {base.name}: its engine or its learners share a GPU with another base model's, for which "
            "engines don't sleep. Leave engine.sleep out, or set num_gpus so that only its own learners share with it."
        )
    if not shares:
        raise PlacementError(
            f"engine.sleep of {base.name} has no effect: learners and engine have GPUs of their own. Leave it out."
        )


def refuse(bases: Bases, num_needed: int, nodes: Sequence[int], fits: Fits) -> PlacementError:
    """Return the error for base models of which `fits` is False on nodes with these numbers of GPUs."""
    present = sum(nodes)
    cluster = _counted(present, "GPU")
    if len(nodes) > 1:
        cluster += f" ({' + '.join(map(str, nodes))} on {len(nodes)} nodes)"
    elif num_needed <= present:
        cluster += " on one node"
    need = f"at least {_counted(num_needed, 'GPU')}"
    if num_needed <= present:
        need = f"{_counted(num_needed, 'GPU')} on other nodes than these"
    remedies = [*_single_changes(bases, fits)] or [*_common_change(bases, fits)]
    return PlacementError(
        f"{' and '.join(_actors(base) for base in bases)} need {need}, because a GPU holds at most one learner and one "
        f"engine; the cluster has {cluster}. {_sentence([*remedies, 'add GPUs'])}"
    )


def no_gpu_for(base: BaseModelConfig) -> PlacementError:
    return PlacementError(
        f"learners.device of {base.name} is cuda, but the cluster has no GPU: add one, or set the device "
        "to cpu or auto."
    )


def limit_not_kept(base: BaseModelConfig, most_gpus: int) -> PlacementError:
    limit = base.engine.max_replicas_per_node
    return PlacementError(
        f"engine.max_replicas_per_node of {base.name} is {limit}, which Ray Serve can't keep for engines that share "
        f"GPUs on a node of {_counted(most_gpus, 'GPU')}. Leave it unset, or set engine.num_gpus to 1."
    )


def _actors(base: BaseModelConfig) -> str:
    learners, engine, found = base.learners, base.engine, []
    if learners.num_gpus != 0 and (learners.device != "cpu" or learners.num_gpus):
        each = f" of {_counted(learners.num_gpus, 'GPU')} each" if learners.num_gpus else ""
        strict = learners.placement.startswith("STRICT_") and learners.count > 1
        found.append(_counted(learners.count, "learner") + each + f" placed {learners.placement}" * strict)
    if engine.num_gpus != 0:
        num_gpus = engine.num_gpus or engine.tensor_parallel_size
        each = f" of {_counted(num_gpus, 'GPU')} each" if engine.num_gpus or num_gpus > 1 else ""
        limit = engine.max_replicas_per_node
        found.append(_counted(engine.replicas, "engine") + each + (f", at most {limit} per node," if limit else ""))
    return f"{' and '.join(found) or 'nothing'} of {base.name}"


def _single_changes(bases: Bases, fits: Fits) -> Iterator[str]:
    """Yield each change of one field that would help."""
    for at, base in enumerate(bases):
        name = f" of {base.name}" if len(bases) > 1 else ""

        def helps(part: str, field: str, value: object, at: int = at, base: BaseModelConfig = base) -> bool:
            return fits([*bases[:at], _with(base, part, field, value), *bases[at + 1 :]])

        for part, field in (("learners", "count"), ("engine", "replicas"), ("engine", "tensor_parallel_size")):
            now = getattr(getattr(base, part), field)
            if value := _largest(now - 1, partial(helps, part, field)):
                yield f"lower {part}.{field}{name} to {value}"
        for part in ("learners", "engine"):
            if getattr(base, part).num_gpus and helps(part, "num_gpus", None):
                yield f"leave {part}.num_gpus{name} unset"
        if base.engine.max_replicas_per_node and helps("engine", "max_replicas_per_node", None):
            yield f"leave engine.max_replicas_per_node{name} unset"
        if base.learners.placement.startswith("STRICT_") and helps("learners", "placement", "PACK"):
            yield f"set learners.placement{name} to PACK"


def _common_change(bases: Bases, fits: Fits) -> Iterator[str]:
    """Yield the change of all counts that would help, if one does."""

    def at_most(number: int) -> list[BaseModelConfig]:
        lowered = []
        for base in bases:
            fewer = _with(base, "learners", "count", min(number, base.learners.count))
            lowered.append(_with(fewer, "engine", "replicas", min(number, base.engine.replicas)))
        return lowered

    most = max(max(base.learners.count, base.engine.replicas) for base in bases)
    number = _largest(most - 1, lambda number: fits(at_most(number)))
    unset = [_with(_with(base, "learners", "num_gpus", None), "engine", "num_gpus", None) for base in bases]
    if number:
        yield f"lower learners.count and engine.replicas to at most {number}"
    elif fits(unset):
        yield "leave num_gpus of learners and engines unset"
    else:
        yield "run a part on CPUs with num_gpus: 0"


def _with(base: BaseModelConfig, part: str, field: str, value: object) -> BaseModelConfig:
    return base.model_copy(update={part: getattr(base, part).model_copy(update={field: value})})


def _largest(highest: int, is_good: Callable[[int], bool]) -> int:
    """Return the largest number from 1 to `highest` that is good, 0 if none is. All below a good one are good."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        if is_good(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _counted(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _sentence(remedies: Sequence[str]) -> str:
    joined = ", or ".join(remedies)
    return f"{joined[0].upper()}{joined[1:]}."
