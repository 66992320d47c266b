"""The metrics of an engine replica, which a thread sets from the engine's own counts every few seconds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypedDict

from tandem.cluster.engine.engine import Engine
from tandem.cluster.engine.metrics.engine_stats import EngineCounts
from tandem.cluster.errors import EngineDeadError
from tandem.cluster.metrics.recording import count, sample_often, set_gauge

logger = logging.getLogger(__name__)
_COUNTERS: dict[str, str] = {
    "prompt_tokens": "tandem_tokens_prompt_total",
    "sampled_tokens": "tandem_tokens_sampled_total",
    "prefix_queries": "tandem_engine_prefix_queries_total",
    "prefix_hits": "tandem_engine_prefix_hits_total",
    "preemptions": "tandem_engine_preemptions_total",
}


class GpuMemory(TypedDict):
    """Bytes of a GPU, whoever uses them."""

    used: int
    total: int


class EngineMetrics:
    """Reports an engine that has started: `EngineMetrics(engine, "my-model", "replica").start()`."""

    def __init__(self, engine: Engine, base_model: str, replica: str, memory: Callable[[], GpuMemory | None]):
        self._engine, self._memory = engine, memory
        self._base, self._labels = base_model, {"base_model": base_model, "replica": replica}
        self._counted: EngineCounts = {
            "prompt_tokens": 0,
            "sampled_tokens": 0,
            "prefix_queries": 0,
            "prefix_hits": 0,
            "preemptions": 0,
        }

    def start(self) -> None:
        count("tandem_engine_starts_total", base_model=self._base)
        sample_often(self.sample)

    def sample(self) -> None:
        """Set the gauges, and add to the counters what has happened since the last call."""
        try:
            self._engine.check_core()
        except EngineDeadError:
            set_gauge("tandem_engine_up", 0, **self._labels)
            return
        load = self._engine.load()
        gauges = {
            "tandem_engine_up": 1,
            "tandem_engine_requests_running": load["num_running"],
            "tandem_engine_requests_waiting": load["num_waiting"],
            "tandem_engine_kv_cache_usage_ratio": load["kv_usage"],
            "tandem_engine_adapters": len(load["adapters"]),
            "tandem_engine_adapter_capacity": load["adapter_capacity"],
            "tandem_engine_adapter_slots": load["slots"],
            "tandem_engine_adapter_slots_used": load["slots_used"],
        }
        for name, value in gauges.items():
            set_gauge(name, value, **self._labels)
        if memory := self._memory():
            set_gauge("tandem_engine_gpu_memory_bytes", memory["used"], **self._labels, kind="used")
            set_gauge("tandem_engine_gpu_memory_bytes", memory["total"], **self._labels, kind="total")
        counts = self._engine.counts()
        for field, name in _COUNTERS.items():
            count(name, counts[field] - self._counted[field], base_model=self._base)  # type: ignore[literal-required]
        self._counted = counts


def gpu_memory() -> GpuMemory | None:
    """Return the memory of this process's first GPU as the driver counts it; None without one. Makes no context."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return None
    try:
        from vllm.utils.import_utils import import_pynvml

        nvml = import_pynvml()
        nvml.nvmlInit()
        try:
            physical = current_platform.device_id_to_physical_device_id(0)
            found = nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(physical))
        finally:
            nvml.nvmlShutdown()
    except Exception:  # a part of a GPU, or a driver without this library
        logger.debug("The driver doesn't tell the GPU's memory", exc_info=True)
        return None
    return {"used": int(found.used), "total": int(found.total)}
