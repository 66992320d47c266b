"""The memory plan of the GPUs that an actor may be on, with all who may be its neighbours there.

Which learner joins which engine is known only once both run. So an engine's KV cache leaves room for the largest
learner that may come, and every learner that may come must fit beside the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tandem.cluster.memory.plan import MemoryPlan, Part, Tenant, plan_memory
from tandem.cluster.placement import BasePlacement

OfBase = Callable[[str, Part], Tenant]
"""Returns the learner or engine of a base model."""


def plan_neighbours(
    gpu_bytes: int, name: str, part: Part, placed: Mapping[str, BasePlacement], of_base: OfBase
) -> MemoryPlan:
    """Return the plan of the GPUs of a base model's learners or engines. Raises NoRoomError.

    Where several neighbours are possible, it is the plan with the one that needs the most.

    Args:
        name: the base model's.
        placed: the placement of every base model, by name.
    """
    own = placed[name]
    if part == "learner" and own.beside:
        plans = [_beside_guests(gpu_bytes, engine, placed, of_base)[name] for engine in own.beside]
    elif part == "engine" and own.guests:
        plans = [*_beside_guests(gpu_bytes, name, placed, of_base).values()]
    else:
        return plan_memory(gpu_bytes, **{part: of_base(name, part)}, share=_share(own, part))
    return max(plans, key=lambda plan: plan.taken)


def _beside_guests(
    gpu_bytes: int, name: str, placed: Mapping[str, BasePlacement], of_base: OfBase
) -> dict[str, MemoryPlan]:
    """Return the plans of an engine beside each base model's learner that may join it, all with the same KV cache."""
    engine, plans = of_base(name, "engine"), dict[str, MemoryPlan]()
    for guest in placed[name].guests:
        together = min(1.0, placed[guest].learner_gpus + placed[name].engine_gpus)
        plans[guest] = plan_memory(gpu_bytes, of_base(guest, "learner"), engine, together)
    least = min(plans.values(), key=lambda plan: plan.kv_cache_bytes)
    return {
        guest: replace(plan, kv_cache_bytes=least.kv_cache_bytes, kv_tokens=least.kv_tokens)
        for guest, plan in plans.items()
    }


def _share(placed: BasePlacement, part: Part) -> float:
    """Return the part of a GPU that an actor has alone."""
    return min(1.0, placed.learner_gpus if part == "learner" else placed.engine_gpus) or 1.0
