"""Models, versions, keys and job queries of the store."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC

import pytest

from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.errors import ConflictError, NotFoundError, UnavailableError
from tandem.serve.store.store import Store

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def train(store, add_job, claim):
    """Make the next version of a model."""

    def train(model, digest):
        add_job(model)
        claimed = claim()
        store.claims.complete(claimed, PolicyVersion(model.id, claimed.next_step, digest), {})

    return train


def test_a_name_is_registered_once(store, add_model):
    model = add_model()
    assert add_model().id == model.id
    with pytest.raises(ConflictError, match="return_existing"):
        store.models.add("team", "project", "agent", "tandem/tiny", return_existing=False)
    with pytest.raises(ConflictError, match="on base model tandem/tiny"):
        store.models.add("team", "project", "agent", "another/base", return_existing=True)
    assert add_model(entity="others").id != model.id


def test_concurrent_registrations_agree(store_url, store):
    def register(_):
        own = Store(store_url)
        try:
            return own.models.add("team", "project", "same", "tandem/tiny", return_existing=True).id
        finally:
            own.close()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(register, range(16)))) == 1


def test_times_come_back_with_their_time_zone(store, clock, add_model):
    model = add_model()
    assert store.models.get(model.id, "team").created_at == clock.now
    assert store.models.get(model.id, "team").created_at.tzinfo == UTC


def test_a_deleted_name_is_free_again_and_its_steps_start_over(store, add_model, train):
    first = add_model()
    train(first, "a")
    assert store.models.delete(first.id, "team").num_checkpoints == 1
    with pytest.raises(NotFoundError):
        store.models.get(first.id, "team")
    with pytest.raises(NotFoundError, match="team/project/agent"):
        store.versions.resolve("team", "project", "agent", None)
    second = add_model()
    assert second.id != first.id
    assert store.versions.resolve("team", "project", "agent", None).step == 0


def test_names_resolve_to_versions(store, add_model, train):
    model = add_model()
    assert store.versions.resolve("team", "project", "agent", None).digest == "0" * 64
    train(model, "a")
    train(model, "b")
    resolved = {step: store.versions.resolve("team", "project", "agent", step) for step in (None, 0, 1, 2)}
    assert {step: (policy.step, policy.digest) for step, policy in resolved.items()} == {
        None: (2, "b"),
        0: (0, "0" * 64),
        1: (1, "a"),
        2: (2, "b"),
    }
    with pytest.raises(NotFoundError, match="hasn't been trained yet"):
        store.versions.resolve("team", "project", "agent", 3)


def test_a_base_model_without_version_0_is_starting(store, add_model):
    add_model("early", base_model="another/base")
    for resolve in (
        lambda: store.versions.resolve("team", "project", "early", None),
        lambda: store.versions.resolve("team", "project", "early", 0),
        lambda: store.versions.resolve_base("another/base"),
    ):
        with pytest.raises(UnavailableError, match="another/base"):
            resolve()


def test_deleted_steps_are_never_used_again(store, add_model, train):
    model = add_model()
    train(model, "a")
    train(model, "b")
    assert store.versions.delete(model.id, "team", [2, 5, 0]) == (2,)
    assert store.versions.resolve("team", "project", "agent", None).step == 1
    with pytest.raises(NotFoundError, match="step2: it was deleted"):
        store.versions.resolve("team", "project", "agent", 2)
    train(model, "c")
    assert [v.step for v in store.versions.page(model.id, "team", 10)] == [1, 3]
    assert store.versions.delete(model.id, "team", [1, 3]) == (1, 3)
    assert store.versions.resolve("team", "project", "agent", None).step == 0, "version 0 always answers"


def test_files_go_when_the_last_version_with_their_digest_has_gone(store, add_model, add_job, claim, train):
    one, two = add_model("one"), add_model("two")
    train(one, "shared")
    train(two, "shared")
    train(one, "mine")
    train(two, "0" * 64)
    store.versions.delete(one.id, "team", [1, 2])
    assert store.garbage.unused_digests() == ["mine"]
    store.versions.delete(two.id, "team", [1, 2])
    assert sorted(store.garbage.unused_digests()) == ["mine", "shared"], "version 0's files are always needed"
    store.garbage.forget_digest("mine")
    assert store.garbage.unused_digests() == ["shared"]
    with pytest.raises(NotFoundError, match="was deleted"):
        store.versions.resolve("team", "project", "one", 2)


def test_files_that_a_running_job_started_from_stay(store, add_model, add_job, claim, train):
    model = add_model()
    train(model, "start")
    add_job(model)
    claimed = claim()
    store.versions.delete(model.id, "team", [1])
    assert store.garbage.unused_digests() == []
    store.claims.complete(claimed, PolicyVersion(model.id, 2, "next"), {})
    assert store.garbage.unused_digests() == ["start"]


def test_files_that_a_running_job_may_make_again_stay(store, add_model, add_job, claim, train):
    one, two = add_model("one"), add_model("two")
    train(one, "first")
    train(one, "second")
    add_job(two)
    repeating = claim()  # starts from version 0, like the job that made "first"
    store.versions.delete(one.id, "team", [1, 2])
    assert store.garbage.unused_digests() == ["second"]
    store.claims.complete(repeating, PolicyVersion(two.id, 1, "first"), {})
    assert store.garbage.unused_digests() == ["second"], "a new version needs the files"
    store.versions.delete(two.id, "team", [1])
    assert sorted(store.garbage.unused_digests()) == ["first", "second"]


def test_versions_page_in_both_directions(store, add_model, train):
    model = add_model()
    for digest in "abcde":
        train(model, digest)
    versions = lambda **page: [v.step for v in store.versions.page(model.id, "team", **page)]  # noqa: E731
    assert versions(limit=2) == [1, 2]
    assert versions(limit=2, after=2) == [3, 4]
    assert versions(limit=2, newest_first=True) == [5, 4]
    assert versions(limit=9, newest_first=True, after=4) == [3, 2, 1]


def test_entities_see_only_their_own(store, add_model, add_job):
    model = add_model()
    job = add_job(model)
    for look in (
        lambda: store.models.get(model.id, "others"),
        lambda: store.versions.page(model.id, "others", 10),
        lambda: store.versions.delete(model.id, "others", [1]),
        lambda: store.models.delete(model.id, "others"),
        lambda: store.logs.page(model.id, "others", 10),
        lambda: store.jobs.get(job.id, "others"),
        lambda: store.jobs.events(job.id, "others", 10),
        lambda: store.jobs.request_cancel(job.id, "others"),
        lambda: store.versions.resolve("others", "project", "agent", None),
    ):
        with pytest.raises(NotFoundError):
            look()
    assert store.models.page("others") == []
    assert store.jobs.page("others", 10) == []


def test_jobs_are_listed_newest_first(store, add_model, add_job, claim):
    one, two = add_model("one"), add_model("two")
    jobs = [add_job(model) for model in (one, two, one)]
    ids = lambda **query: [job.id for job in store.jobs.page("team", **{"limit": 10, **query})]  # noqa: E731
    assert ids() == [jobs[2].id, jobs[1].id, jobs[0].id]
    assert ids(limit=1) == [jobs[2].id]
    assert ids(after=jobs[2].id) == [jobs[1].id, jobs[0].id]
    assert ids(newest_first=False, after=jobs[0].id) == [jobs[1].id, jobs[2].id]
    assert ids(model_id=one.id) == [jobs[2].id, jobs[0].id]
    claimed = claim()
    assert ids(state="running") == [claimed.id]


def test_an_idempotency_key_makes_one_job(store, add_model, add_job):
    model = add_model()
    job = add_job(model, key="k", body="1" * 64)
    assert add_job(model, key="k", body="1" * 64).id == job.id
    with pytest.raises(ConflictError, match=job.id):
        add_job(model, key="k", body="2" * 64)
    assert add_job(add_model("other"), key="k", body="2" * 64).id != job.id
    assert len(store.jobs.page("team", 10)) == 2


def test_no_job_for_a_deleted_model(store, add_model, add_job):
    model = add_model()
    store.models.delete(model.id, "team")
    with pytest.raises(NotFoundError):
        add_job(model)


def test_logs_go_with_their_model(store, add_model, add_job):
    model = add_model()
    job = add_job(model)
    ids = [str(uuid.uuid4()) for _ in range(3)]
    for log_id, split in zip(ids, ("train", "val", "train"), strict=True):
        store.logs.add(log_id, model.id, "team", split, f"logs/{log_id}", {"reward": 0.5})
    assert [row.id for row in store.logs.page(model.id, "team", 2)] == ids[:2]
    assert [row.id for row in store.logs.page(model.id, "team", 2, after=ids[1])] == ids[2:]
    assert [row.id for row in store.logs.page(model.id, "team", 9, split="train")] == [ids[0], ids[2]]
    assert set(store.models.delete(model.id, "team").blob_keys) == {job.payload_key, *(f"logs/{i}" for i in ids)}


def test_keys_are_found_by_their_hash_until_revoked(store):
    key = store.keys.add("laptop", "team", "a" * 64, "train")
    assert store.keys.exist()
    assert store.keys.find("a" * 64).entity == "team"
    assert store.keys.find("b" * 64) is None
    assert store.keys.revoke(key.id)
    assert store.keys.find("a" * 64) is None
    assert not store.keys.revoke("unknown")
    assert [k.name for k in store.keys.all()] == ["laptop"]
