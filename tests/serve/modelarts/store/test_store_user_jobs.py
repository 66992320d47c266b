"""The store of saved configurations and jobs, on both databases: names, claims, stops, logs."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.serve.errors import ConflictError, NotFoundError
from tandem.serve.modelarts.store.jobs import TooManyJobsError
from tandem.serve.modelarts.store.status import UserJobStatus

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
SETTINGS = {"spec_id": 1, "worker_server_num": 1}


def add(modelarts, name="job", project="team", max_open=100):
    return modelarts.jobs.add(project, name, "", SETTINGS, max_open)


def test_a_configurations_name_is_unique_in_its_project(modelarts):
    modelarts.configs.add("team", "one", "first", SETTINGS)
    modelarts.configs.add("others", "one", "theirs", SETTINGS)
    with pytest.raises(ConflictError, match="one"):
        modelarts.configs.add("team", "one", "", SETTINGS)
    modelarts.configs.replace("team", "one", "changed", {"spec_id": 2})
    row = modelarts.configs.get("team", "one")
    assert (row.description, row.settings) == ("changed", {"spec_id": 2})
    modelarts.configs.delete("team", "one")
    with pytest.raises(NotFoundError):
        modelarts.configs.get("team", "one")
    assert modelarts.configs.get("others", "one").description == "theirs"


def test_configurations_are_paged_sorted_and_searched(modelarts, clock):
    for name, description in (("b", "ax%y"), ("a", "z"), ("C", "bxy")):
        modelarts.configs.add("team", name, description, SETTINGS)
        clock.advance(1)

    def names(limit=10, offset=0, order="create_time", descending=True, search=None):
        rows, total = modelarts.configs.page("team", limit, offset, order, descending, search)
        return [row.name for row in rows], total

    assert names() == (["C", "a", "b"], 3)
    assert names(2, 2) == (["b"], 3)
    assert names(order="config_desc") == (["a", "C", "b"], 3)
    assert names(search="x") == (["C", "b"], 2)
    assert names(search="x%") == (["b"], 1), "wildcards are matched literally"


def test_a_jobs_name_can_be_reused_after_it_is_deleted(modelarts):
    first = add(modelarts)
    with pytest.raises(ConflictError, match="job"):
        add(modelarts)
    modelarts.jobs.delete("team", first.job_id)
    second = add(modelarts)
    assert second.job_id != first.job_id
    with pytest.raises(NotFoundError):
        modelarts.jobs.versions("team", first.job_id)
    with pytest.raises(NotFoundError):
        modelarts.jobs.versions("others", second.job_id)


def test_version_numbers_are_never_reused(modelarts):
    first = add(modelarts)
    second = modelarts.jobs.add_version("team", first.job_id, "again", SETTINGS, first.id, 100)
    assert (first.number, second.number, second.pre_version_id) == (1, 2, first.id)
    modelarts.jobs.delete_version("team", first.job_id, second.id)
    third = modelarts.jobs.add_version("team", first.job_id, None, SETTINGS, None, 100)
    assert third.number == 3
    assert [v.number for v in modelarts.jobs.versions("team", first.job_id)] == [1, 3]
    [(newest, count)], total = modelarts.jobs.page("team", 10, 0)
    assert (newest.id, newest.job.description, count, total) == (third.id, "again", 2, 1)
    with pytest.raises(NotFoundError):
        modelarts.jobs.add_version("team", first.job_id, None, SETTINGS, second.id, 100)
    for version in (first, third):
        modelarts.jobs.delete_version("team", first.job_id, version.id)
    assert modelarts.jobs.page("team", 10, 0) == ([], 0)


def test_a_project_has_a_limit_of_open_jobs(modelarts):
    def try_one(index):
        try:
            return add(modelarts, f"job-{index}", max_open=3)
        except TooManyJobsError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [version for version in pool.map(try_one, range(8)) if version]
    assert len(made) == 3
    modelarts.jobs.stop("team", made[0].job_id, made[0].id)
    add(modelarts, "another", max_open=3)
    add(modelarts, project="others", max_open=1)


def test_a_claim_holds_until_its_lease_expires(modelarts, clock):
    version = add(modelarts)
    job = modelarts.claims.claim("runner-1", 30)
    assert (job.version_id, job.name, job.attempt) == (version.id, "job", 1)
    assert modelarts.claims.claim("runner-2", 30) is None
    clock.advance(20)
    modelarts.claims.renew(job, 30)
    clock.advance(20)
    assert modelarts.claims.claim("runner-2", 30) is None
    clock.advance(20)
    taken = modelarts.claims.claim("runner-2", 30)
    assert taken.attempt == 2
    for write in (
        lambda: modelarts.claims.renew(job, 30),
        lambda: modelarts.claims.set_status(job, UserJobStatus.RUNNING),
        lambda: modelarts.logs.append(job, "worker-0.log", ["late"]),
        lambda: modelarts.claims.end(job, UserJobStatus.FAILED),
        lambda: modelarts.claims.count_submission(job),
        lambda: modelarts.claims.release(job),
    ):
        with pytest.raises(LeaseLostError):
            write()
    modelarts.claims.release(taken)
    assert modelarts.claims.claim("runner-3", 30).attempt == 3


def test_concurrent_claims_get_different_jobs(modelarts):
    ids = {add(modelarts, f"job-{n}").id for n in range(6)}
    with ThreadPoolExecutor(6) as pool:
        jobs = [job for job in pool.map(lambda n: modelarts.claims.claim(f"r-{n}", 30), range(12)) if job]
    while job := modelarts.claims.claim("rest", 30):
        jobs.append(job)
    assert sorted(job.version_id for job in jobs) == sorted(ids)


def test_a_stop_ends_unclaimed_jobs_and_asks_runners_to_stop_claimed_ones(modelarts):
    waiting, running = add(modelarts, "waiting"), add(modelarts, "running")
    modelarts.jobs.stop("team", waiting.job_id, waiting.id)
    assert modelarts.jobs.version("team", waiting.job_id, waiting.id).status == UserJobStatus.CANCELED
    job = modelarts.claims.claim("runner", 30)
    assert job.version_id == running.id
    modelarts.claims.set_status(job, UserJobStatus.RUNNING)
    assert modelarts.jobs.stop("team", running.job_id, running.id)
    with pytest.raises(JobCancelledError):
        modelarts.claims.renew(job, 30)
    modelarts.claims.set_status(job, UserJobStatus.RUNNING)
    assert modelarts.jobs.version("team", running.job_id, running.id).status == UserJobStatus.KILLING
    modelarts.claims.end(job, UserJobStatus.KILLED, "stopped")
    assert modelarts.jobs.stop("team", running.job_id, running.id) is False


def test_a_log_is_read_by_lines_across_its_chunks(modelarts):
    version = add(modelarts)
    job = modelarts.claims.claim("runner", 30)
    modelarts.logs.append(job, "worker-0.log", ["1", "", "3"])
    modelarts.claims.count_submission(job)
    modelarts.logs.append(job, "worker-0.log", [])
    modelarts.logs.append(job, "worker-0.log", ["4\x00", "5"])
    modelarts.logs.append(job, "worker-1.log", ["other"])
    assert modelarts.logs.files("team", version.job_id, version.id) == ["worker-0.log", "worker-1.log"]
    assert modelarts.logs.size("team", version.job_id, version.id, "worker-0.log") == 5
    assert modelarts.logs.read(version.id, "worker-0.log", 2, 3) == ["", "3", "4\ufffd"]
    assert modelarts.logs.read(version.id, "worker-0.log", 1, 100) == ["1", "", "3", "4\ufffd", "5"]
    assert modelarts.logs.read(version.id, "worker-0.log", 6, 100) == []
    assert modelarts.logs.sizes_since_submission(job) == {"worker-0.log": 2, "worker-1.log": 1}
    assert modelarts.logs.sizes(job) == {"worker-0.log": 5, "worker-1.log": 1}
    with pytest.raises(NotFoundError, match="worker-2"):
        modelarts.logs.size("team", version.job_id, version.id, "worker-2.log")


def test_a_dataset_version_must_not_change_after_its_first_use(modelarts):
    assert modelarts.datasets.check("team", "d", "v1", "a" * 64)
    assert modelarts.datasets.check("team", "d", "v1", "a" * 64)
    assert not modelarts.datasets.check("team", "d", "v1", "b" * 64)
    assert modelarts.datasets.check("team", "d", "v2", "b" * 64)
    assert modelarts.datasets.check("others", "d", "v1", "b" * 64)


def test_concurrent_first_uses_of_a_dataset_version_record_one_fingerprint(modelarts):
    for version in range(5):
        barrier = Barrier(4)

        def use(fingerprint, version=str(version), barrier=barrier):
            barrier.wait()
            return modelarts.datasets.check("team", "d", version, fingerprint * 64)

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(use, "aabb")) == 2, "the two jobs that used the recorded version"
