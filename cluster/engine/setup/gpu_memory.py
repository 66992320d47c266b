"""The part of a GPU for an engine, decided before vLLM starts."""

from __future__ import annotations

from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import EngineConfig
from tandem.cluster.engine.setup.parallelism import num_processes
from tandem.cluster.memory.plan import MemoryPlan, engine_settings


def plan_on_gpu(base: ResolvedBaseModel) -> MemoryPlan | None:
    """Return the memory plan of the engine's GPU, which is printed; None on a CPU.

    On a GPU, vLLM asks the driver for its memory, so that this process has no CUDA context. Raises PolicyError if there
    is no room.
    """
    engine = base.config.engine
    if not engine.num_gpus:
        return None
    from vllm.platforms import current_platform

    if current_platform.is_cpu():  # a build of vLLM without CUDA, whatever Ray has granted
        return None
    if num_processes(engine.tensor_parallel_size, engine.extra_args) != engine.tensor_parallel_size:
        return None  # split in ways of the user's own, which the plan doesn't know; vLLM measures
    plan = base.memory_plan(current_platform.get_device_total_memory(), "engine")
    print(plan, flush=True)  # into the log of this process, at every log level
    return plan


def settings_on_gpu(base: ResolvedBaseModel, plan: MemoryPlan | None) -> EngineConfig:
    """Return the engine's settings with the size of its KV cache and its LoRA slots; without a plan, as they are."""
    return engine_settings(base.config.engine, plan) if plan else base.config.engine
