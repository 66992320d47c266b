"""The memory of a GPU, divided between a learner and an engine before either starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

from tandem.cluster.config import BaseModelConfig, EngineConfig
from tandem.cluster.memory.parts import (
    DTYPE_BYTES,
    EngineMemory,
    LearnerMemory,
    engine_memory,
    gb,
    learner_memory,
    sequence_kv_bytes,
    slot_bytes,
    tensor_parallel_size,
)
from tandem.cluster.memory.refusal import NoRoomError, refusal

if TYPE_CHECKING:
    from tandem.rl.models.geometry import Geometry

Part = Literal["learner", "engine"]
RESERVE = 0.03
"""Fraction of a GPU that nobody gets: fragments, and memory that the driver keeps."""
ALONE = 0.9
"""Fraction of a GPU for an engine that has it alone; vLLM measures then how much of it is left for the KV cache."""
MANY_SLOTS, FEW_SLOTS = 8, 4
SLOTS_SHARE = 0.02
"""Fraction of a GPU below which an engine gets many LoRA slots."""


class PlanNumbers(TypedDict):
    """Bytes of a plan, for programs and the page."""

    gpu: int
    learner: int | None
    engine: int | None
    """Without the KV cache."""
    kv_cache: int
    kv_tokens: int
    max_loras: int
    is_shared: bool
    takes_turns: bool


@dataclass(frozen=True)
class MemoryPlan:
    """How a GPU is divided. Its text is printed when a service starts."""

    names: tuple[str, ...]
    """Of the base models."""
    gpu_bytes: int
    learner: LearnerMemory | None
    engine: EngineMemory | None
    kv_cache_bytes: int
    kv_tokens: int
    """Tokens that the KV cache holds, in sequences of the greatest length."""
    max_loras: int
    is_shared: bool
    """Whether others use a part of the GPU, so that each keeps to its own."""
    takes_turns: bool = False
    """Whether the engine sleeps while the learner computes."""

    @property
    def learner_bytes(self) -> int:
        return self.learner.total if self.learner else 0

    @property
    def taken(self) -> int:
        """Bytes that are in use at once, at most."""
        if self.learner and self.engine and self.takes_turns:
            awake = self.learner.idle + self.engine.total + self.kv_cache_bytes
            return max(awake, self.learner.total + self.engine.asleep)
        return self.learner_bytes + (self.engine.total + self.kv_cache_bytes if self.engine else 0)

    @property
    def learner_fraction(self) -> float:
        """Fraction of the GPU for torch's allocator in the learner, which counts no overhead; 1 if it is alone."""
        if self.learner is None or not self.is_shared:
            return 1.0
        return (self.learner.total - self.learner.overhead) / self.gpu_bytes

    @property
    def engine_fraction(self) -> float:
        """Fraction of the GPU that vLLM wants to be free at its start, after it has made its CUDA context."""
        if self.engine is None:
            return 0.0
        return (self.engine.total - self.engine.overhead + self.kv_cache_bytes) / self.gpu_bytes

    @property
    def numbers(self) -> PlanNumbers:
        return {
            "gpu": self.gpu_bytes,
            "learner": self.learner.total if self.learner else None,
            "engine": self.engine.total if self.engine else None,
            "kv_cache": self.kv_cache_bytes,
            "kv_tokens": self.kv_tokens,
            "max_loras": self.max_loras,
            "is_shared": self.is_shared,
            "takes_turns": self.takes_turns,
        }

    def __str__(self) -> str:
        lines = [f"Memory plan of {', '.join(self.names)}, for a GPU of {gb(self.gpu_bytes)}:"]
        if part := self.learner:
            lines.append(
                f"  learner {gb(part.total)}: weights {gb(part.weights)}, LoRA and optimizer {gb(part.lora)}, "
                f"activations {gb(part.activations)}, other models {gb(part.other_models)}, CUDA {gb(part.overhead)}"
            )
        if own := self.engine:
            lines.append(
                f"  engine {gb(own.total + self.kv_cache_bytes)}: weights {gb(own.weights)}, {self.max_loras} LoRA "
                f"slots {gb(own.lora)}, buffers {gb(own.buffers)}, CUDA {gb(own.overhead)}, "
                f"KV cache {gb(self.kv_cache_bytes)} = {self.kv_tokens:,} tokens"
            )
        if self.takes_turns and self.learner and self.engine:
            lines.append(
                f"  by turns: {gb(self.engine.asleep)} of the engine stay while it sleeps, and {gb(self.learner.idle)} "
                "of the learner between jobs"
            )
        return "\n".join(lines)


def engine_settings(engine: EngineConfig, plan: MemoryPlan) -> EngineConfig:
    """Return an engine's settings with what the plan decides. vLLM then doesn't measure a GPU that others fill."""
    update: dict[str, int | float] = {"max_loras": plan.max_loras}
    if plan.is_shared:
        # vLLM wants this fraction to be free at its start, even if the size of its cache is given.
        fraction = engine.gpu_memory_utilization or plan.engine_fraction
        update |= {"kv_cache_memory_bytes": plan.kv_cache_bytes, "gpu_memory_utilization": fraction}
    elif engine.gpu_memory_utilization is None and engine.kv_cache_memory_bytes is None:
        update["gpu_memory_utilization"] = ALONE
    return engine.model_copy(update=update)


def choose_slots(base: BaseModelConfig, geometry: Geometry, gpu_bytes: int) -> int:
    """Return max_loras: as configured, else many if these take little of the GPU."""
    if base.engine.max_loras is not None:
        return base.engine.max_loras
    slot = slot_bytes(geometry, base.largest_lora.r, DTYPE_BYTES[base.engine.dtype], tensor_parallel_size(base))
    slots = MANY_SLOTS if MANY_SLOTS * slot <= SLOTS_SHARE * gpu_bytes else FEW_SLOTS
    return min(slots, base.engine.max_cpu_loras)


@dataclass(frozen=True)
class Tenant:
    """A base model that has a learner or an engine on a GPU."""

    base: BaseModelConfig
    geometry: Geometry
    max_model_len: int
    """The longest row of a learner, and the longest sequence of an engine."""


def plan_memory(
    gpu_bytes: int, learner: Tenant | None = None, engine: Tenant | None = None, share: float = 1.0
) -> MemoryPlan:
    """Divide a GPU. Raises NoRoomError, with the numbers and what to change, if the parts don't fit.

    `share` is the fraction of the GPU that these parts have, if others use the rest.
    """
    budget = int(gpu_bytes * (1 - RESERVE) * share)
    of_learner = learner_memory(learner.base, learner.geometry, learner.max_model_len) if learner else None
    of_engine, slots, needed, kv_bytes = None, 0, 0, 0
    if engine:
        base, geometry = engine.base, engine.geometry
        slots = choose_slots(base, geometry, gpu_bytes)
        of_engine = engine_memory(base, geometry, gpu_bytes, slots)
        needed = sequence_kv_bytes(
            geometry, engine.max_model_len, DTYPE_BYTES[base.engine.dtype], tensor_parallel_size(base)
        )
        kv_bytes = _kv_cache_bytes(base, gpu_bytes, budget, of_learner, of_engine)
    takes_turns = learner is not None and engine is not None and engine.base.engine.sleep
    plan = MemoryPlan(
        names=tuple(dict.fromkeys(tenant.base.name for tenant in (learner, engine) if tenant)),
        gpu_bytes=gpu_bytes,
        learner=of_learner,
        engine=of_engine,
        kv_cache_bytes=max(kv_bytes, 0),
        kv_tokens=max(kv_bytes, 0) * engine.max_model_len // needed if engine and needed else 0,
        max_loras=slots,
        is_shared=share < 1 or (learner is not None and engine is not None),
        takes_turns=takes_turns,
    )
    if plan.taken > budget or kv_bytes < needed:
        raise NoRoomError(refusal(plan, learner, engine, budget, needed))
    return plan


def _kv_cache_bytes(
    base: BaseModelConfig, gpu_bytes: int, budget: int, learner: LearnerMemory | None, engine: EngineMemory
) -> int:
    """Return the KV cache: as configured, or what the others leave."""
    settings = base.engine
    if settings.kv_cache_memory_bytes is not None:
        return settings.kv_cache_memory_bytes
    if settings.gpu_memory_utilization is not None:
        return int(gpu_bytes * settings.gpu_memory_utilization) - engine.total
    if learner is None:
        return min(budget, int(gpu_bytes * ALONE)) - engine.total
    return budget - (learner.idle if settings.sleep else learner.total) - engine.total
