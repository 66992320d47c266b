"""Datasets in the store: once by content, kept while a job needs them, and the kinds of jobs that use them."""

import uuid

import pytest

from tandem.cluster.artifacts import dataset_key
from tandem.cluster.jobs.job import PolicyVersion
from tandem.rl.config import TrainingConfig
from tandem.rl.supervised.config import SupervisedConfig
from tandem.serve.errors import ConflictError, NotFoundError
from tandem.serve.store.uploads.datasets import NewDataset

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def add_dataset(store):
    def add(digest="d" * 64, entity="team"):
        dataset_id = str(uuid.uuid4())
        return store.datasets.add(
            NewDataset(dataset_id, entity, digest, dataset_key(dataset_id), 3, 5 << 30, {"id": 2})
        )

    return add


@pytest.fixture
def add_supervised(store):
    def add(model, dataset, **options):
        job_id = str(uuid.uuid4())
        config = SupervisedConfig(**options).model_dump(mode="json", exclude_none=True)
        return store.jobs.add(job_id, model.id, dataset.blob_key, config, "0" * 64, kind="sft", dataset_id=dataset.id)

    return add


def finish(store, claim, digest, metrics=None):
    store.claims.complete(claim, PolicyVersion(claim.model_id, claim.next_step, digest), metrics or {})


def test_a_dataset_exists_once_for_an_entity(store, add_dataset):
    first = add_dataset()
    assert add_dataset().id == first.id
    other = add_dataset(entity="others")
    assert other.id != first.id
    assert store.datasets.find("team", "d" * 64).num_bytes == 5 << 30
    with pytest.raises(NotFoundError):
        store.datasets.get(other.id, "team")
    more = [add_dataset(letter * 64) for letter in "abc"]
    assert [row.id for row in store.datasets.page("team", 2)] == [more[2].id, more[1].id]
    assert [row.id for row in store.datasets.page("team", 9, more[0].id, newest_first=False)] == [
        more[1].id,
        more[2].id,
    ]


def test_a_dataset_stays_while_a_job_needs_it(store, add_model, add_dataset, add_supervised, claim):
    dataset, model = add_dataset(), add_model()
    job = add_supervised(model, dataset)
    with pytest.raises(ConflictError, match=job.id):
        store.datasets.delete(dataset.id, "team")
    claimed = claim()
    assert (claimed.kind, claimed.payload_key) == ("sft", dataset.blob_key)
    with pytest.raises(ConflictError):
        store.datasets.delete(dataset.id, "team")
    finish(store, claimed, "1" * 64)
    unknown = dataset_key(str(uuid.uuid4()))
    assert store.garbage.unknown_blobs([dataset.blob_key, unknown]) == [unknown]
    with pytest.raises(NotFoundError):
        store.datasets.delete(dataset.id, "others")
    assert store.datasets.delete(dataset.id, "team").blob_key == dataset.blob_key
    assert store.garbage.unknown_blobs([dataset.blob_key]) == [dataset.blob_key]
    with pytest.raises(NotFoundError):
        add_supervised(model, dataset)


def test_a_deleted_model_leaves_datasets_alone(store, add_model, add_dataset, add_supervised, add_job):
    model = add_model()
    own = add_job(model)
    add_supervised(model, add_dataset())
    assert store.models.delete(model.id, "team").blob_keys == (own.payload_key,)


def test_the_options_have_the_type_of_the_kind(store, add_model, add_dataset, add_supervised, add_job, claim):
    model = add_model()
    options = {"learning_rate": [1e-3, 1], "metric_logging": {"enabled": True}, "batch_size": 4}
    add_supervised(model, add_dataset(), **options)
    claimed = claim()
    assert isinstance(claimed.config, SupervisedConfig)
    assert claimed.config.model_dump(exclude_none=True) == options
    add_job(model)
    queued = store.claims.next_queued("tandem/tiny")
    assert (queued.kind, type(queued.config)) == ("rl", TrainingConfig)


def test_a_job_of_another_kind_begins_with_a_new_optimizer(
    store, add_model, add_dataset, add_supervised, add_job, claim
):
    model, dataset = add_model(), add_dataset()
    digests = iter(f"{number:064}" for number in range(1, 9))

    def next_is_fresh(add, digest=None):
        add()
        claimed = claim()
        finish(store, claimed, digest or next(digests))
        return claimed.fresh_optimizer, claimed.lost_optimizer

    def supervised():
        add_supervised(model, dataset)

    def reinforced():
        add_job(model)

    # Version 0 has none, and neither has a version of a job that learned nothing from it.
    assert next_is_fresh(reinforced, digest=f"{0:064}") == (False, False)
    assert next_is_fresh(supervised) == (False, False)
    assert next_is_fresh(supervised) == (False, False)
    assert next_is_fresh(reinforced) == (True, False)
    assert next_is_fresh(reinforced) == (False, False)
    assert next_is_fresh(supervised) == (True, False)
    # A job that had nothing to learn leaves the checkpoint, with its optimizer state, as it was.
    assert next_is_fresh(reinforced, digest=f"{5:064}") == (True, False)
    assert next_is_fresh(supervised) == (False, False)
    store.retention.expire_optimizers(keep=1)
    store.versions.delete(model.id, "team", [8])
    assert next_is_fresh(supervised) == (True, True)


def test_gradient_steps_are_logged_once_if_asked(store, add_model, add_dataset, add_supervised, claim):
    model, dataset = add_model(), add_dataset()
    for logging in ({"target_training_step": 9}, {"enabled": False}, None):
        add_supervised(model, dataset, metric_logging=logging)
        claimed = claim()
        for index in (0, 1, 1):
            store.claims.record_event(claimed, "gradient_step", {"loss": 2.0 - index}, index)
        finish(store, claimed, "1" * 64)
    rows = store.logs.page(model.id, "team", 10)
    assert [row.split for row in rows] == ["sft", "sft"]
    assert [row.metrics for row in rows] == [
        {"training_step": 9.0, "sft/gradient_step": 1.0, "sft/loss": 2.0},
        {"training_step": 9.0, "sft/gradient_step": 2.0, "sft/loss": 1.0},
    ]
    assert store.models.delete(model.id, "team").blob_keys == ()
