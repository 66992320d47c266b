"""Jobs of built-in algorithms: the training jobs that they make. The tests complete these jobs in place of learners."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from serve_fakes import groups
from waiting import wait_until

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import LimitsConfig, TandemConfig
from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.jobs.supervision import RunnerStoppedError
from tandem.serve.modelarts.running.algorithm_job import AlgorithmJob
from tandem.serve.modelarts.running.supervision import JobFailedError, Supervision
from tandem.serve.modelarts.settings.projects import project_storage

LEASE_S = 300
SETTINGS = {
    "model_id": 1,
    "spec_id": 0,
    "worker_server_num": 1,
    "data_url": "/bucket/groups.jsonl",
    "parameter": [{"label": "model_name", "value": "agent"}, {"label": "batch_size", "value": "2"}],
}


@pytest.fixture
def config(tmp_path):
    return TandemConfig(home=tmp_path, limits=LimitsConfig(max_open_jobs=1))


@pytest.fixture
def write_data(config):
    def write(lines):
        bucket = config.home / "projects" / "team" / "bucket"
        bucket.mkdir(parents=True)
        (bucket / "groups.jsonl").write_text("\n".join(map(json.dumps, lines)))

    return write


@pytest.fixture
def version(modelarts):
    return modelarts.jobs.add("team", "job", "", SETTINGS, 10)


@pytest.fixture
def start(config, store, modelarts):
    """A function that claims the version and runs it in a thread. It returns the future and the stop event."""
    stops = []

    def run(claimed, stop):
        storage, artifacts = project_storage(config, "team"), Artifacts(config.artifacts_root)
        with Supervision(modelarts, claimed, LEASE_S, stop) as supervision:
            try:
                AlgorithmJob(supervision, modelarts.datasets, store, storage, artifacts, config).run()
            finally:
                supervision.flush()
                modelarts.claims.release(claimed)

    with ThreadPoolExecutor() as pool:

        def start():
            stops.append(threading.Event())
            return pool.submit(run, modelarts.claims.claim("runner", LEASE_S), stops[-1]), stops[-1]

        yield start
        for stop in stops:
            stop.set()


def next_job(claim, store):
    wait_until(lambda: store.claims.next_queued("tandem/tiny") is not None)
    return claim()


def test_each_batch_becomes_a_training_job_and_a_version(start, write_data, version, modelarts, store, claim):
    write_data(groups(3))
    running, _ = start()
    for step in (1, 2):
        job = next_job(claim, store)
        store.claims.complete(job, PolicyVersion(job.model_id, step, f"digest-{step}"), {"reward": 0.5})
    running.result()
    assert any("version 2" in line for line in modelarts.logs.read(version.id, "worker-0.log", 1, 100))


def test_a_resumed_job_finds_its_training_jobs(start, write_data, version, store, claim):
    write_data(groups(2))
    first, stop = start()
    job = next_job(claim, store)
    stop.set()
    with pytest.raises(RunnerStoppedError):
        first.result()
    second, _ = start()
    store.claims.complete(job, PolicyVersion(job.model_id, 1, "digest"), {})
    second.result()
    assert len(store.jobs.page("team", 10)) == 1


def test_it_waits_for_room_in_the_queue(start, write_data, version, modelarts, store, claim, add_job, add_model):
    write_data(groups(1))
    other = add_job(add_model("other"))
    running, _ = start()
    wait_until(lambda: modelarts.jobs.version("team", version.job_id, version.id).error)
    assert [job.id for job in store.jobs.page("team", 10)] == [other.id]
    for _ in range(2):
        job = next_job(claim, store)
        store.claims.complete(job, PolicyVersion(job.model_id, 1, f"digest-{job.model_id}"), {})
    running.result()


def test_the_error_names_a_training_job_that_fails(start, write_data, version, store, claim):
    write_data(groups(1))
    running, _ = start()
    job = next_job(claim, store)
    store.claims.fail(job, "the learners ran out of memory")
    with pytest.raises(JobFailedError, match=f"{job.id}.*out of memory"):
        running.result()


def test_data_without_groups_fails_the_job(start, write_data, version):
    write_data([])
    running, _ = start()
    with pytest.raises(JobFailedError, match="data_url"):
        running.result()
