"""KV cache blocks that are zero when a request gets them, so that no request reads another's NaN.

vLLM's attention on a CPU multiplies the values of a whole block by its probabilities, which are zero beyond the end of
the sequence. The rest of a reused block still holds the values of the request before, and 0 * NaN is NaN: one request
whose values aren't finite would spoil every later one with a short last block, of all models.

Importing this module imports no vLLM.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.core.sched.interface import SchedulerInterface
    from vllm.v1.kv_cache_interface import KVCacheConfig


def scheduler(*, kv_cache_config: KVCacheConfig, **others: Any) -> SchedulerInterface:
    """Return vLLM's scheduler, with blocks cleared as vLLM itself does for models with recurrent layers.

    vLLM calls this in place of a scheduler's class (`--scheduler-cls`). Its scheduler then lists the blocks that a
    step gives to requests, and its worker clears them before the step.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import KVCacheConfig

    class CleanBlocks(KVCacheConfig):
        needs_kv_cache_zeroing = True

    clean = CleanBlocks(**{field.name: getattr(kv_cache_config, field.name) for field in fields(kv_cache_config)})
    kind = AsyncScheduler if others["vllm_config"].scheduler_config.async_scheduling else Scheduler
    return kind(kv_cache_config=clean, **others)
