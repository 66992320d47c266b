"""Say in a sentence why a GPU has no room, with the numbers and with what would make some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tandem.cluster.memory.parts import gb, tensor_parallel_size
from tandem.rl.errors import PolicyError

if TYPE_CHECKING:
    from tandem.cluster.memory.plan import MemoryPlan, Tenant

NUM_REMEDIES = 3


class NoRoomError(PolicyError):
    """A base model doesn't fit on its GPUs with its settings."""


def refusal(plan: MemoryPlan, learner: Tenant | None, engine: Tenant | None, budget: int, needed: int) -> str:
    """Return the numbers of a plan that doesn't fit, and the settings to change, those of the largest parts first.

    `needed`: bytes of one sequence of the greatest length in the KV cache.
    """
    sizes, remedies = [], []
    of_learner, of_engine = (
        f" of {base.base.name}" if base and len(plan.names) > 1 else "" for base in (learner, engine)
    )
    taken = plan.taken + max(0, needed - plan.kv_cache_bytes)
    if plan.learner and learner:
        part, length = plan.learner, learner.max_model_len
        sizes.append(
            f"a learner{of_learner} {gb(part.total)} (weights {gb(part.weights)}, LoRA {gb(part.lora)}, activations "
            f"{gb(part.activations)} for rows of {length:,} tokens, other models {gb(part.other_models)})"
        )
        remedies += [
            (part.activations, f"lower max_model_len{of_learner} below {length:,}"),
            (part.weights, f"raise learners.shard{of_learner} above {learner.base.learners.shard}"),
            (part.other_models, f"lower learners.jobs_at_once{of_learner}"),
        ]
    if plan.engine and engine:
        own, settings, length = plan.engine, engine.base.engine, engine.max_model_len
        cache = max(needed, plan.kv_cache_bytes)
        sizes.append(
            f"an engine{of_engine} {gb(own.total + cache)} (weights {gb(own.weights)}, {plan.max_loras} LoRA slots "
            f"{gb(own.lora)}, buffers {gb(own.buffers)}, KV cache {gb(cache)}, of which {gb(needed)} is one sequence)"
        )
        remedies += [
            (own.weights, f"raise engine.tensor_parallel_size{of_engine} above {tensor_parallel_size(engine.base)}"),
            (own.lora, f"lower engine.max_loras{of_engine} below {plan.max_loras}"),
            (needed, f"lower max_model_len{of_engine} below {length:,}"),
        ]
        for name in ("kv_cache_memory_bytes", "gpu_memory_utilization"):
            if getattr(settings, name) is not None:
                way = "raise" if plan.kv_cache_bytes < needed else "lower"
                remedies.append((plan.gpu_bytes, f"{way} engine.{name}{of_engine}, or leave it out"))
    if plan.learner and plan.engine and not plan.takes_turns and len(plan.names) == 1:
        remedies.append((plan.learner.activations, "set engine.sleep: true, if you sample only between jobs"))
    ordered = dict.fromkeys(text for _, text in sorted(remedies, reverse=True))
    several = " Or give learner and engine a GPU each." if plan.learner and plan.engine else ""
    return (
        f"It needs {gb(taken)}, and a GPU of {gb(plan.gpu_bytes)} has {gb(budget)} for it: {' and '.join(sizes)}. "
        f"To make it fit, {', or '.join(list(ordered)[:NUM_REMEDIES])}.{several}"
    )
