"""The load of an engine: batch, queue, KV cache and prefix cache, as vLLM's scheduler reports them with each step.

vLLM's own loggers set dozens of metrics per step and per token. This one adds a few integers per step; a thread turns
them into Ray's metrics every few seconds (`tandem.cluster.engine.metrics.engine_metrics`). Importing this imports no
vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

from tandem.cluster.metrics.recording import observe


class StepCounts(TypedDict):
    """Totals since the engine started."""

    prefix_queries: int
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int
    preemptions: int


class EngineCounts(StepCounts):
    """The same, with the tokens of completions."""

    prompt_tokens: int
    sampled_tokens: int


@dataclass
class EngineStats:
    """What vLLM reported last, and totals. Written by the engine's event loop, read by any thread."""

    base_model: str
    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    """Fraction."""
    running_adapters: frozenset[str] = frozenset()
    """Names of the adapters in the batch."""
    counts: StepCounts = field(default_factory=lambda: StepCounts(prefix_queries=0, prefix_hits=0, preemptions=0))

    def record(self, scheduler: Any, iteration: Any) -> None:
        """Take what vLLM reports with a step: its SchedulerStats and IterationStats, each possibly None."""
        counts = self.counts
        if scheduler is not None:
            self.num_running = scheduler.num_running_reqs
            self.num_waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
            self.kv_usage = scheduler.kv_cache_usage
            self.running_adapters = frozenset(scheduler.running_lora_adapters)
            counts["prefix_queries"] += scheduler.prefix_cache_stats.queries
            counts["prefix_hits"] += scheduler.prefix_cache_stats.hits
        if iteration is not None:
            counts["preemptions"] += iteration.num_preempted_reqs
            for seconds in iteration.time_to_first_tokens_iter:
                observe("tandem_engine_first_token_seconds", seconds, base_model=self.base_model)

    @property
    def prefix_hit_rate(self) -> float | None:
        """The fraction of prompt tokens that were in the prefix cache, since the engine started; None before any."""
        queries = self.counts["prefix_queries"]
        return self.counts["prefix_hits"] / queries if queries else None

    def logger(self) -> Any:
        """Return a class of loggers for vLLM that write here.

        It derives from vLLM's logger for Prometheus, because vLLM adds that one unless a logger is of its kind.
        """
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        stats = self

        class StatsLogger(PrometheusStatLogger):
            def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None):
                self.engine_indexes = engine_indexes or [0]

            def record(
                self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
            ) -> None:
                stats.record(scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None: ...

            def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None: ...

            def record_admission_rejection(self, reason: str) -> None: ...

        return StatsLogger
