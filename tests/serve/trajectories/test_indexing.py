"""The index has every trajectory once, whatever happens on the way, and payloads go when they should."""

import pytest
from sqlalchemy import func, select
from trajectory_data import answered, group

from tandem.cluster.config import ProjectConfig, TrajectoriesConfig
from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.keys import create_key
from tandem.serve.store.tables.trajectories import GroupRow, SourceRow, TrajectoryRow
from tandem.serve.trajectories import indexing
from tandem.serve.trajectories.removal import mark_surplus, remove_marked
from tandem.serve.trajectories.upkeep import Upkeep

BOTH = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
DAY_S = 86400


def num_rows(store, table):
    with store.database.read() as session:
        return session.scalar(select(func.count()).select_from(table))


@BOTH
@pytest.mark.parametrize("num_before", [0, 1, 2, 3])
def test_an_attempt_that_dies_is_continued_without_doubling(
    post_job, index_all, find, services, clock, monkeypatch, num_before
):
    monkeypatch.setattr(indexing, "ROWS_AT_ONCE", 2)
    post_job(group(answered(0.0), answered(1.0), answered(2.0)), group(*(answered(float(n)) for n in range(3, 8))))
    index = services.store.trajectory_index
    put, calls = index.put, []

    def dying_put(source, groups, trajectories):
        if len(calls) == num_before:
            raise SystemExit("killed")
        calls.append(len(trajectories))
        put(source, groups, trajectories)

    monkeypatch.setattr(index, "put", dying_put)
    with pytest.raises(SystemExit):
        index_all()
    monkeypatch.setattr(index, "put", put)
    assert num_rows(services.store, TrajectoryRow) == sum(calls)
    assert index_all() == 0 and find()["still_indexing"]["jobs"] == 1  # the lease still runs
    clock.advance(3600)
    assert index_all() == 1
    assert [item["reward"] for item in find()["data"]] == [float(n) for n in range(8)]
    assert num_rows(services.store, GroupRow) == 2 and num_rows(services.store, TrajectoryRow) == 8
    with services.store.database.read() as session:
        source = session.scalar(select(SourceRow))
    assert (source.num_groups, source.num_trajectories, source.state) == (2, 8, "indexed")


@BOTH
def test_a_worker_that_lost_its_source_writes_nothing_more(post_job, services, clock, find):
    post_job(group(answered(0.0), answered(1.0)))
    index = services.store.trajectory_index
    slow = index.claim()
    clock.advance(3600)
    assert indexing.index_next(services.store, services.artifacts, services.config)
    with pytest.raises(Exception, match="isn't this worker's"):
        index.put(slow, [], [])
    assert index.claim() is None and find()["total"] == 2


def test_a_damaged_payload_is_given_up_with_the_reason(post_job, index_all, http, services, blobs, clock):
    job = post_job(group(answered(0.0), answered(1.0)))
    services.artifacts.write_blob(f"payloads/{job}.json.zst", b"damaged")
    for _ in range(3):
        assert index_all() == 1
        clock.advance(3600)
    assert index_all() == 0
    page = http.get(f"/v1/preview/training-jobs/{job}/groups").json()
    assert "damaged" in page["notes"][0] and not page["still_indexing"]
    missing = http.get(f"/v1/preview/trajectories/{job}.0.0")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "trajectory_not_indexed"


@BOTH
def test_jobs_and_logs_of_an_earlier_release_are_indexed_in_their_order(
    post_job, post_log, index_all, services, find, clock
):
    first = post_job(group(answered(0.0), answered(1.0)))
    clock.advance(1)
    log = post_log(group(answered(0.5)))
    clock.advance(1)
    last = post_job(group(answered(2.0), answered(3.0)))
    with services.store.database.write() as session:
        for source in session.scalars(select(SourceRow)):
            session.delete(source)
    assert services.store.trajectory_index.enrol() == 3 and services.store.trajectory_index.enrol() == 0
    index_all()
    found = find()["data"]
    assert [item["job_id"] or item["log_id"] for item in found] == [last, last, log, first, first]


def finish(store, claim, model, step):
    claimed = claim()
    store.claims.complete(claimed, PolicyVersion(model["id"], step, "d" * 64), {})


@BOTH
def test_retention_by_age_spares_open_jobs_and_says_what_went(
    post_job, post_log, index_all, services, store, claim, clock, http, find, blobs, model
):
    ended, log = post_job(group(answered(0.0), answered(1.0))), post_log(group(answered(0.5)))
    services.artifacts.write_blob(f"traces/{ended}/x", b"x")
    finish(store, claim, model, 1)
    waiting = post_job(group(answered(4.0), answered(5.0)))
    index_all()
    clock.advance(10 * DAY_S)
    young = post_log(group(answered(9.0)))
    index_all()
    settings = TrajectoriesConfig(keep_days=5, keep_bytes=None)
    assert mark_surplus(store, settings) == 2 and mark_surplus(store, settings) == 0
    for _ in range(2):  # marked at once, gone later
        gone = http.get(f"/v1/preview/trajectories/{ended}.0.0")
        assert gone.status_code == 410 and "keep_days" in gone.json()["error"]["message"]
        assert [item["reward"] for item in find()["data"]] == [9.0, 4.0, 5.0]
        remove_marked(store, services.artifacts)
    assert blobs() == sorted([f"logs/{young}.json.zst", f"payloads/{waiting}.json.zst"])
    assert http.get(f"/v1/preview/training-jobs/{ended}/groups").status_code == 410
    assert num_rows(store, TrajectoryRow) == 3 and num_rows(store, GroupRow) == 2
    assert "3 trajectories of 2 jobs and logs were removed" in find()["notes"][0]
    assert http.get(f"/v1/preview/training-jobs/{ended}").json()["state"] == "succeeded" and log


@BOTH
def test_retention_by_size_removes_the_oldest(post_log, index_all, services, store, find):
    for number in range(4):
        post_log(group(answered(float(number))))
    index_all()
    with store.database.read() as session:
        sizes = session.scalars(select(SourceRow.num_bytes).order_by(SourceRow.number)).all()
    room = sizes[2] + sizes[3]
    assert [one.num_bytes for one in store.trajectory_index.removable(None, room)] == sizes[:2]
    assert mark_surplus(store, TrajectoriesConfig(keep_days=None, keep_bytes=room)) == 2
    assert [item["reward"] for item in find()["data"]] == [3.0, 2.0]
    assert mark_surplus(store, TrajectoriesConfig(keep_days=None, keep_bytes=None)) == 0


def test_the_index_of_a_large_source_goes_in_parts(post_log, index_all, store, services, monkeypatch):
    monkeypatch.setattr("tandem.serve.store.uploads.trajectory_index.DELETED_AT_ONCE", 3)
    post_log(*(group(answered(0.0), answered(1.0)) for _ in range(5)))
    index_all()
    assert mark_surplus(store, TrajectoriesConfig(keep_days=None, keep_bytes=0)) == 1
    assert remove_marked(store, services.artifacts) == 1
    assert num_rows(store, TrajectoryRow) == num_rows(store, GroupRow) == 0


def test_a_project_that_keeps_nothing_is_never_indexed(
    post_job, post_log, services, store, claim, http, find, blobs, model
):
    projects = {"team": ProjectConfig(keep_trajectories=False)}
    config = services.config.model_copy(update={"projects": projects})

    def work():
        while indexing.index_next(store, services.artifacts, config):
            pass
        return remove_marked(store, services.artifacts)

    job, log = post_job(group(answered(0.0), answered(1.0))), post_log(group(answered(0.5)))
    assert work() == 1 and blobs() == [f"payloads/{job}.json.zst"]  # the job still needs it
    assert find()["data"] == [] and num_rows(store, TrajectoryRow) == 0
    assert http.get(f"/v1/preview/trajectories/{job}.0.0").status_code == 410
    assert "keep_trajectories" in find()["notes"][0]
    finish(store, claim, model, 1)
    assert work() == 1 and blobs() == []
    assert http.get(f"/v1/preview/trajectories/{log}.0.0").status_code == 410


def test_the_trajectories_of_a_deleted_model_go_with_it(post_job, index_all, remove, http, model, store, find):
    job = post_job(group(answered(0.0), answered(1.0)))
    index_all()
    http.delete(f"/v1/preview/models/{model['id']}").raise_for_status()
    assert find() | {"notes": []} == find() and find()["data"] == []
    assert http.get(f"/v1/preview/trajectories/{job}.0.0").status_code == 410
    assert remove() == 1 and num_rows(store, TrajectoryRow) == 0


class OneProcess:
    """Indexes in the process of the test."""

    def __init__(self, services):
        self.services, self.num_calls, self.num_ends = services, 0, 0

    def index_all(self):
        self.num_calls += 1
        while indexing.index_next(self.services.store, self.services.artifacts, self.services.config):
            pass

    def end(self):
        self.num_ends += 1


def test_upkeep_wakes_the_worker_for_work_alone(post_log, services, store, find, clock):
    indexer = OneProcess(services)
    upkeep = Upkeep(store, services.artifacts, services.config, indexer)
    upkeep.step()
    assert indexer.num_calls == 0
    post_log(group(answered(0.5)))
    upkeep.step()
    upkeep.step()
    assert indexer.num_calls == 1 and find()["total"] == 1
    clock.advance(91 * DAY_S)
    Upkeep(store, services.artifacts, services.config, indexer).step()
    assert find()["total"] == 0 and num_rows(store, TrajectoryRow) == 0


def test_another_entity_has_notes_of_its_own(post_log, index_all, store, services, http):
    post_log(group(answered(0.5)))
    mark_surplus(store, TrajectoriesConfig(keep_days=None, keep_bytes=None))
    other = {"Authorization": f"Bearer {create_key(store, 'x', 'others')}"}
    page = http.get("/v1/preview/trajectories", headers=other).json()
    assert page["still_indexing"] == {"jobs": 0, "logs": 0} and page["notes"] == []
