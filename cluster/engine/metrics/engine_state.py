"""The state of one engine replica, as the service shows it."""

from __future__ import annotations

import time
from typing import TypedDict

from tandem.cluster.engine.engine import Engine, EngineLoad
from tandem.cluster.engine.metrics.engine_metrics import GpuMemory, gpu_memory
from tandem.cluster.engine.metrics.engine_stats import EngineCounts
from tandem.cluster.errors import EngineDeadError
from tandem.cluster.memory.plan import MemoryPlan, PlanNumbers


class EngineState(TypedDict):
    started_at: float
    """Unix time."""
    device: str
    """The GPU's name, or cpu."""
    error: str | None
    """Why the engine's core doesn't work."""
    load: EngineLoad | None
    """None while the core doesn't work."""
    counts: EngineCounts
    max_model_len: int
    max_num_seqs: int
    dtype: str
    kv_tokens: int
    """Tokens that the KV cache holds."""
    gpu_memory: GpuMemory | None
    plan: PlanNumbers | None
    """Of the GPU's memory; None on a CPU."""


class StateOfEngine:
    """Reads the state of an engine that has started."""

    def __init__(self, engine: Engine, plan: MemoryPlan | None):
        self._engine, self._plan, self._started_at = engine, plan, time.time()

    def read(self) -> EngineState:
        """Return the state. Fast: nothing waits for the core."""
        engine, load, error = self._engine, None, None
        try:
            engine.check_core()
            load = engine.load()
        except EngineDeadError as dead:
            error = str(dead)
        sizes = engine.sizes()
        return {
            "started_at": self._started_at,
            "device": sizes["device"],
            "error": error,
            "load": load,
            "counts": engine.counts(),
            "max_model_len": sizes["max_model_len"],
            "max_num_seqs": sizes["max_num_seqs"],
            "dtype": sizes["dtype"],
            "kv_tokens": sizes["kv_tokens"],
            "gpu_memory": gpu_memory(),
            "plan": self._plan.numbers if self._plan else None,
        }
