"""The benchmarks of the training loop, at toy size, on the service of these tests."""

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from paths import ROOT


@pytest.fixture(autouse=True, scope="module")
def benchmarks():
    """The benchmarks are programs, not an installed package."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


def test_a_version_gives_tokens_after_it_is_published(service):
    from publish_latency import measure, quantiles

    options = argparse.Namespace(jobs=2, clients=1, tokens=2)
    jobs, waits = measure(service.http, options, lambda what: None)
    assert len(jobs) == 2 and min(waits) > 0
    assert all(0 < job["published"] < job["first_token"] for job in jobs)
    assert all(job["published"] < job["notified"] for job in jobs)
    assert quantiles([3, 1, 2, 5]) == {"p50": 2.5, "p95": 5}


def test_the_stages_of_a_loop_follow_each_other(http):
    from learner_throughput import Workload
    from training_loop import STAGES, measure_jobs, summary, table

    toy = Workload(num_groups=2, group_size=2, prompt_tokens=12, completion_tokens=6, spread_tokens=2, vocabulary=400)
    jobs = measure_jobs(http, "tandem/tiny", toy, 2, lambda what: None)
    for job in jobs:
        events = [job[stage] for stage in STAGES if stage != "accepted"]
        assert events == sorted(events) and job["accepted"] < job["visible"]
        assert 0 < job["learner"] < job["answered"]
    result = summary(jobs)
    assert result["first_over_second"] == jobs[0]["answered"] / jobs[1]["answered"]
    assert table({"jobs": jobs, **result}).row_count == len(STAGES) + 2


def test_payloads_and_many_requests_pass_the_proxy(service, http, tmp_path):
    from ingest_proxy import Target, measure_target

    def pids(title):
        below = psutil.Process().children(recursive=True)
        return [process.pid for process in below if " ".join(process.cmdline()).startswith(title)]

    target = Target(int(service.url.rpartition(":")[2]), {"Authorization": f"Bearer {service.key}"}, pids)
    options = argparse.Namespace(megabytes=0.05, tokens=20, group_size=2, at_once=6)
    found = measure_target(target, http, tmp_path, options)
    assert found["gzip"]["sent_mb"] < found["identity"]["sent_mb"] == found["zstd"]["body_mb"]
    assert found["jobs_at_once"]["answers"] == found["completions_at_once"]["answers"] == {"200": 6}


def test_the_cost_of_each_process_is_measured(http):
    from queueing.service_load import (
        Client,
        Meter,
        Shape,
        measure_completions,
        measure_job,
        measure_looks,
        measure_loops,
    )

    client, shape = Client(http), Shape(2, 3)
    meter = Meter(lambda title: [os.getpid()])
    model = client.register("costs")
    assert measure_looks(client, meter, model, 2, 1)["core_s"].keys() == {
        "proxy", "api", "engine", "core", "coordinator", "learner", "preparation",
    }  # fmt: skip
    assert measure_completions(client, meter, model, shape, 3, 2)["median_latency_s"] > 0
    job = measure_job(client, meter, model, shape, 2, 256, 1)
    assert job["gradient_steps"] >= 1 and job["trained_tokens"] == 2 * 2 * 3
    loop = measure_loops(client, meter, [client.register("loop-costs")], shape, 2, 256, 1)
    assert loop["jobs"] == 1 and loop["rollouts_per_s"] == pytest.approx(4 * loop["jobs_per_s"])


def test_a_step_through_the_tinker_sdk_passes_all_parts(service, tmp_path):
    from tinker_round_trip import PARTS, Cell, Direct, ThroughSdk

    cell = Cell(2, 8)
    with closing(ThroughSdk(service, service.key, cell)) as through:
        seconds, parts, num_bytes = through.step()
    assert list(parts) == list(PARTS) and sum(parts.values()) == pytest.approx(seconds, abs=1e-3)
    assert num_bytes > 0 and Direct(tmp_path, cell).step() > 0


def test_tinker_samples_are_asked_at_once_and_by_turns(service):
    from tinker_sampling import Load, Server

    load = Load(at_once=4, clients=2, seconds=0.2, prompt_tokens=4, max_tokens=2)
    found = Server("tandem", service.url, f"tml-{service.key}", Path(sys.executable)).measure(load)
    assert found["burst"]["samples"] == 4 and found["clients"]["samples"] >= 2
    assert found["burst"]["failed"] == found["clients"]["failed"] == 0
