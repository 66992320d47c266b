"""Forks and imports in the store: which files they keep, and what a fork continues with."""

from datetime import timedelta

import pytest

from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.errors import ConflictError, GoneError, InvalidRequestError
from tandem.serve.store.policies.lineage import ForkSource
from tandem.serve.store.policies.models import OwnLora

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
BASE = "tandem/tiny"


@pytest.fixture
def train(store, add_job, claim):
    def train(model, digest):
        add_job(model)
        claimed = claim()
        store.claims.complete(claimed, PolicyVersion(model.id, claimed.next_step, digest), {"reward": 1.0})
        return claimed

    return train


@pytest.fixture
def fork(store):
    def fork(source, name="fork", **options):
        return store.lineage.fork("team", "project", name, BASE, ForkSource(source.id, **options))

    return fork


def test_a_fork_trains_on_with_or_without_the_optimizer(store, add_model, train, add_job, claim, fork):
    source = add_model()
    train(source, "a")
    train(source, "b")
    for name, options, is_fresh in (("with", {}, False), ("without", {"optimizer": False}, True)):
        model = fork(source, name, step=1, **options)
        add_job(model)
        claimed = claim()
        assert claimed.version == PolicyVersion(model.id, 1, "a") and claimed.next_step == 2
        assert claimed.fresh_optimizer is is_fresh
        store.claims.complete(claimed, PolicyVersion(model.id, 2, "c"), {})
    assert fork(source, "newest").origin["step"] == 2
    assert fork(source, "zero", step=0).next_step == 1


def test_files_stay_while_a_fork_needs_them(store, add_model, train, fork, clock):
    source = add_model()
    train(source, "a")
    with_state, without = fork(source, "with", step=1), fork(source, "without", step=1, optimizer=False)
    train(source, "b")
    store.models.delete(source.id, "team")
    assert list(store.garbage.unused_digests()) == ["b"]
    later = clock.now + timedelta(days=1)
    assert list(store.retention.removable_optimizers(later)) == [], "one fork trains with it"
    store.models.delete(with_state.id, "team")
    assert list(store.retention.removable_optimizers(later)) == ["a"]
    assert list(store.garbage.unused_digests()) == ["b"]
    store.models.delete(without.id, "team")
    assert sorted(store.garbage.unused_digests()) == ["a", "b"]


def test_a_job_that_is_repeated_keeps_the_files_of_a_deleted_fork(store, add_model, train, add_job, claim, fork):
    """A job of another model that started where the source's did may make the same checkpoint."""
    source, twin = add_model(), add_model("twin")
    train(source, "a")
    copy = fork(source, "copy")
    add_job(twin)
    claim()  # starts from version 0, as the job that made `a`
    store.models.delete(source.id, "team")
    store.models.delete(copy.id, "team")
    assert list(store.garbage.unused_digests()) == []


def test_a_retired_version_cannot_be_forked(store, add_model, train, fork):
    source = add_model()
    train(source, "a")
    train(source, "b")
    store.retention.expire_optimizers(1)
    with pytest.raises(InvalidRequestError, match="optimizer"):
        fork(source, step=1, optimizer=True)
    assert fork(source, "without", step=1).origin["optimizer"] is False
    store.retention.retire(1)
    with pytest.raises(GoneError):
        fork(source, step=1)


def test_version_0_of_own_settings_is_never_garbage(store, train, claim, add_job):
    lora = OwnLora({"r": 2}, "own-zero")
    model = store.models.add("team", "project", "own", BASE, False, lora)
    add_job(model)
    claimed = claim()
    assert claimed.version.digest == "own-zero"
    store.claims.complete(claimed, PolicyVersion(model.id, 1, "own-zero"), {})  # a job that trained nothing
    assert store.versions.resolve("team", "project", "own", 0).digest == "own-zero"
    store.models.delete(model.id, "team")
    assert list(store.garbage.unused_digests()) == []
    assert store.models.add("team", "project", "own", BASE, False, lora).initial_digest == "own-zero"


def test_an_import_takes_a_step_once(store, add_model, train):
    model = add_model()
    train(model, "a")
    add = store.lineage.add_import
    assert add(model.id, "team", 1, "x", {}, "content") is None, "the step is taken"
    row = add(model.id, "team", 5, "x", {}, "content", "key")
    assert row.step == 5 and add(model.id, "team", 6, "y", {}, "content", "key") is not None
    assert [version.step for version in store.versions.page(model.id, "team", 10)] == [1, 5]
    store.versions.delete(model.id, "team", [5])
    with pytest.raises(ConflictError):
        store.lineage.find_import(model.id, "content", "key")
    assert store.lineage.find_import(model.id, "content", None) is None
