"""Metrics of a real Ray, read back as Prometheus does, and the lives of engines in its key-value store."""

import sys

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

from tandem.cluster.metrics import recording
from tandem.serve.app.cluster_view import metric_addresses
from tandem.serve.app.engines import history as engine_history
from tandem.serve.observing.exposition import merged

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors don't find the modules of tests
BASE = "tandem/ray lane"


class Recording:
    """Records some metrics in an actor."""

    def record(self):
        recording.count("tandem_tokens_trained_total", 5, base_model=BASE)
        recording.count("tandem_tokens_trained_total", 2, base_model=BASE)
        recording.observe("tandem_publish_seconds", 0.25, base_model=BASE)
        recording.set_gauge("tandem_jobs", 3, base_model=BASE, state="queued")


@pytest.fixture
def actors(ray_local):
    actors = [ray.remote(num_cpus=0)(Recording).remote() for _ in range(2)]
    ray.get([actor.record.remote() for actor in actors])
    yield actors
    for actor in actors:
        ray.kill(actor)


def read():
    """The samples of BASE, by name and labels, as the route returns them."""
    pages = {node: httpx.get(url).text for node, url in metric_addresses().items()}
    families = text_string_to_metric_families(merged(pages))
    samples = [sample for family in families for sample in family.samples]
    return {
        (sample.name, sample.labels.get("le"), sample.labels.get("state")): sample.value
        for sample in samples
        if sample.labels.get("base_model") == BASE
    }


def test_what_actors_record_is_read_back(actors):
    wanted = {
        ("tandem_tokens_trained_total", None, None): 14,
        ("tandem_publish_seconds_count", None, None): 2,
        ("tandem_publish_seconds_bucket", "0.2", None): 0,
        ("tandem_publish_seconds_bucket", "0.3", None): 2,
        ("tandem_jobs", None, "queued"): 3,  # still there in Ray's next reports, without being set again
    }
    wait_until(lambda: wanted.items() <= read().items())  # Ray reports every 10 s


def test_the_lives_of_engines_are_kept(ray_local):
    died = engine_history.record_start(BASE, "a", "10.0.0.1")
    engine_history.record_end(died, "died", "out of memory " * 1000)
    engine_history.record_end(died, "stopped")  # the first end counts
    engine_history.record_start(BASE, "b", "10.0.0.1")
    found = {life.replica: life for life in engine_history.lives()[BASE]}
    assert found["a"].ending == "died" and found["a"].ended_at >= found["a"].started_at
    assert len(found["a"].reason) == engine_history.MAX_REASON
    assert found["b"].ending is None
    for number in range(engine_history.MAX_KEPT):
        engine_history.record_start(BASE, f"c{number}", "10.0.0.1")
    assert {life.replica for life in engine_history.lives()[BASE]} == {f"c{n}" for n in range(engine_history.MAX_KEPT)}
