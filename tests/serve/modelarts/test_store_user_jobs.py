"""Saved configurations and user jobs in the store, on both databases: names, claims, stops, logs."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tandem.cluster.errors import JobCancelledError, LeaseLostError
from tandem.serve.errors import ConflictError, NotFoundError
from tandem.serve.modelarts.store.jobs import TooManyJobsError, UserJobStatus

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
SETTINGS = {"spec_id": 1, "worker_server_num": 1}


def add(store, name="job", project="team", max_open=100):
    return store.add_user_job(project, name, "", SETTINGS, max_open)


def test_a_configurations_name_is_its_projects(store):
    store.add_training_config("team", "one", "first", SETTINGS)
    store.add_training_config("others", "one", "theirs", SETTINGS)
    with pytest.raises(ConflictError, match="one is existed"):
        store.add_training_config("team", "one", "", SETTINGS)
    store.replace_training_config("team", "one", "changed", {"spec_id": 2})
    row = store.training_config("team", "one")
    assert (row.description, row.settings) == ("changed", {"spec_id": 2})
    store.delete_training_config("team", "one")
    with pytest.raises(NotFoundError):
        store.training_config("team", "one")
    assert store.training_config("others", "one").description == "theirs"


def test_configurations_are_paged_sorted_and_searched(store, clock):
    for name, description in (("b", "ax%y"), ("a", "z"), ("C", "bxy")):
        store.add_training_config("team", name, description, SETTINGS)
        clock.advance(1)

    def names(limit=10, offset=0, order="create_time", descending=True, search=None):
        rows, total = store.training_configs("team", limit, offset, order, descending, search)
        return [row.name for row in rows], total

    assert names() == (["C", "a", "b"], 3)
    assert names(2, 2) == (["b"], 3)
    assert names(order="config_desc") == (["a", "C", "b"], 3)
    assert names(search="x") == (["C", "b"], 2)
    assert names(search="x%") == (["b"], 1), "a wildcard is text"


def test_a_jobs_name_is_free_again_when_it_is_deleted(store):
    first = add(store)
    with pytest.raises(ConflictError, match="Job name:job is existed"):
        add(store)
    store.delete_user_job("team", first.job_id)
    second = add(store)
    assert second.job_id != first.job_id
    with pytest.raises(NotFoundError):
        store.user_job_versions("team", first.job_id)
    with pytest.raises(NotFoundError):
        store.user_job_versions("others", second.job_id)


def test_versions_are_counted_and_numbers_not_used_again(store):
    first = add(store)
    second = store.add_user_job_version("team", first.job_id, "again", SETTINGS, first.id, 100)
    assert (first.number, second.number, second.pre_version_id) == (1, 2, first.id)
    store.delete_user_job_version("team", first.job_id, second.id)
    third = store.add_user_job_version("team", first.job_id, None, SETTINGS, None, 100)
    assert third.number == 3
    assert [v.number for v in store.user_job_versions("team", first.job_id)] == [1, 3]
    [(newest, count)], total = store.user_jobs("team", 10, 0)
    assert (newest.id, newest.job.description, count, total) == (third.id, "again", 2, 1)
    with pytest.raises(NotFoundError):
        store.add_user_job_version("team", first.job_id, None, SETTINGS, second.id, 100)
    for version in (first, third):
        store.delete_user_job_version("team", first.job_id, version.id)
    assert store.user_jobs("team", 10, 0) == ([], 0)


def test_no_more_jobs_are_open_than_a_project_may_have(store):
    def try_one(index):
        try:
            return add(store, f"job-{index}", max_open=3)
        except TooManyJobsError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [version for version in pool.map(try_one, range(8)) if version]
    assert len(made) == 3
    store.stop_user_job("team", made[0].job_id, made[0].id)
    add(store, "another", max_open=3)
    add(store, project="others", max_open=1)


def test_a_claim_is_one_runners_until_its_lease_runs_out(store, clock):
    version = add(store)
    job = store.claim_user_job("runner-1", 30)
    assert (job.version_id, job.name, job.attempt) == (version.id, "job", 1)
    assert store.claim_user_job("runner-2", 30) is None
    clock.advance(20)
    store.renew_user_job(job, 30)
    clock.advance(20)
    assert store.claim_user_job("runner-2", 30) is None
    clock.advance(20)
    taken = store.claim_user_job("runner-2", 30)
    assert taken.attempt == 2
    for write in (
        lambda: store.renew_user_job(job, 30),
        lambda: store.set_user_job_status(job, UserJobStatus.RUNNING),
        lambda: store.append_user_job_log(job, "worker-0.log", ["late"]),
        lambda: store.end_user_job(job, UserJobStatus.FAILED),
        lambda: store.count_submission(job),
        lambda: store.release_user_job(job),
    ):
        with pytest.raises(LeaseLostError):
            write()
    store.release_user_job(taken)
    assert store.claim_user_job("runner-3", 30).attempt == 3


def test_runners_that_claim_at_once_get_different_jobs(store):
    ids = {add(store, f"job-{n}").id for n in range(6)}
    with ThreadPoolExecutor(6) as pool:
        jobs = [job for job in pool.map(lambda n: store.claim_user_job(f"r-{n}", 30), range(12)) if job]
    while job := store.claim_user_job("rest", 30):
        jobs.append(job)
    assert sorted(job.version_id for job in jobs) == sorted(ids)


def test_a_stop_ends_what_nobody_has_begun_and_asks_for_the_end_of_the_rest(store):
    waiting, running = add(store, "waiting"), add(store, "running")
    store.stop_user_job("team", waiting.job_id, waiting.id)
    assert store.user_job_version("team", waiting.job_id, waiting.id).status == UserJobStatus.CANCELED
    job = store.claim_user_job("runner", 30)
    assert job.version_id == running.id
    store.set_user_job_status(job, UserJobStatus.RUNNING)
    assert store.stop_user_job("team", running.job_id, running.id)
    with pytest.raises(JobCancelledError):
        store.renew_user_job(job, 30)
    store.set_user_job_status(job, UserJobStatus.RUNNING)
    assert store.user_job_version("team", running.job_id, running.id).status == UserJobStatus.KILLING
    store.end_user_job(job, UserJobStatus.KILLED, "stopped")
    assert store.stop_user_job("team", running.job_id, running.id) is False


def test_a_log_is_read_by_lines_across_the_pieces_it_was_written_in(store):
    version = add(store)
    job = store.claim_user_job("runner", 30)
    store.append_user_job_log(job, "worker-0.log", ["1", "", "3"])
    store.count_submission(job)
    store.append_user_job_log(job, "worker-0.log", [])
    store.append_user_job_log(job, "worker-0.log", ["4\x00", "5"])
    store.append_user_job_log(job, "worker-1.log", ["other"])
    assert store.user_job_log_files("team", version.job_id, version.id) == ["worker-0.log", "worker-1.log"]
    assert store.user_job_log_size("team", version.job_id, version.id, "worker-0.log") == 5
    assert store.user_job_log(version.id, "worker-0.log", 2, 3) == ["", "3", "4\ufffd"]
    assert store.user_job_log(version.id, "worker-0.log", 1, 100) == ["1", "", "3", "4\ufffd", "5"]
    assert store.user_job_log(version.id, "worker-0.log", 6, 100) == []
    assert store.log_lines_since_submission(job) == {"worker-0.log": 2, "worker-1.log": 1}
    assert store.user_job_log_sizes(job) == {"worker-0.log": 5, "worker-1.log": 1}
    with pytest.raises(NotFoundError, match="worker-2"):
        store.user_job_log_size("team", version.job_id, version.id, "worker-2.log")


def test_a_dataset_version_stays_as_it_was_first_used(store):
    assert store.check_dataset_version("team", "d", "v1", "a" * 64)
    assert store.check_dataset_version("team", "d", "v1", "a" * 64)
    assert not store.check_dataset_version("team", "d", "v1", "b" * 64)
    assert store.check_dataset_version("team", "d", "v2", "b" * 64)
    assert store.check_dataset_version("others", "d", "v1", "b" * 64)


def test_jobs_that_use_a_dataset_version_first_at_the_same_time_agree_on_what_it_is(store):
    for version in range(5):
        barrier = Barrier(4)

        def use(fingerprint, version=str(version), barrier=barrier):
            barrier.wait()
            return store.check_dataset_version("team", "d", version, fingerprint * 64)

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(use, "aabb")) == 2, "those who found what the first one recorded"
