"""The load of an engine from vLLM's statistics, and its metrics."""

from types import SimpleNamespace

import pytest
from recorded_metrics import recorded

from tandem.cluster.engine.metrics.engine_metrics import EngineMetrics
from tandem.cluster.engine.metrics.engine_stats import EngineStats
from tandem.cluster.errors import EngineDeadError


def scheduler(running=2, waiting=1, skipped=0, queries=0, hits=0, usage=0.5, adapters=()):
    """What vLLM's scheduler reports with a step."""
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=skipped,
        kv_cache_usage=usage,
        prefix_cache_stats=SimpleNamespace(queries=queries, hits=hits),
        running_lora_adapters=dict.fromkeys(adapters, 1),
    )


def iteration(preempted=0, first=()):
    return SimpleNamespace(num_preempted_reqs=preempted, time_to_first_tokens_iter=list(first))


def test_the_last_step_gives_the_load_and_all_steps_the_totals():
    stats = EngineStats("tiny")
    assert stats.prefix_hit_rate is None
    with recorded() as metrics:
        stats.record(scheduler(queries=30, hits=10, adapters=["a", "b"]), iteration(first=[0.1, 0.2]))
        stats.record(scheduler(3, 4, 5, queries=10, hits=10, usage=0.75, adapters=["b"]), iteration(1))
        stats.record(None, None)
    assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (3, 9, 0.75)
    assert stats.running_adapters == {"b"} and stats.prefix_hit_rate == 0.5
    assert stats.counts["preemptions"] == 1
    assert metrics.of("tandem_engine_first_token_seconds", base_model="tiny") == [0.1, 0.2]


class Engine:
    """An engine with a load that a test sets."""

    def __init__(self):
        self.stats, self.dead = EngineStats("tiny"), False
        self.sampled_tokens = 0

    def check_core(self):
        if self.dead:
            raise EngineDeadError("it died")

    def counts(self):
        return {**self.stats.counts, "prompt_tokens": 0, "sampled_tokens": self.sampled_tokens}

    def load(self):
        return {
            "num_running": 2,
            "num_waiting": 3,
            "kv_usage": 0.25,
            "adapters": ["a"],
            "adapter_capacity": 16,
            "slots": 4,
            "slots_used": 1,
        }


@pytest.fixture
def engine():
    return Engine()


def test_samples_set_gauges_and_add_what_is_new(engine):
    sampler = EngineMetrics(engine, "tiny", "r1", lambda: {"used": 7, "total": 8})
    with recorded() as metrics:
        engine.stats.record(scheduler(queries=10, hits=4), iteration(preempted=1))
        sampler.sample()
        engine.stats.record(scheduler(queries=10, hits=10), iteration())
        engine.sampled_tokens = 7
        sampler.sample()
        sampler.sample()
    assert metrics.of("tandem_engine_prefix_queries_total", base_model="tiny") == [10, 10]
    assert metrics.of("tandem_engine_prefix_hits_total") == [4, 10]
    assert metrics.of("tandem_engine_preemptions_total") == [1]
    assert metrics.of("tandem_tokens_sampled_total", base_model="tiny") == [7]
    labels = {"base_model": "tiny", "replica": "r1"}
    assert metrics.of("tandem_engine_requests_waiting", **labels)[-1] == 3
    assert metrics.of("tandem_engine_adapter_slots_used", **labels)[-1] == 1
    assert metrics.of("tandem_engine_gpu_memory_bytes", **labels, kind="used")[-1] == 7
    assert metrics.of("tandem_engine_up", **labels)[-1] == 1


def test_a_dead_engine_is_down(engine):
    engine.dead = True
    with recorded() as metrics:
        EngineMetrics(engine, "tiny", "r2", lambda: None).sample()
    # A thread repeats all gauges now and then, those of other replicas too.
    assert set(metrics.of("tandem_engine_up", replica="r2")) == {0}
    assert metrics.of("tandem_engine_requests_running", replica="r2") == []
