"""Accepting a job leaves a payload and a row, or neither."""

import errno

import pytest

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.errors import StageError
from tandem.rl.config import TrainingConfig
from tandem.rl.errors import ConfigError
from tandem.serve.errors import ConflictError, NoAnswerError, QueueFullError, StorageFullError
from tandem.serve.jobs.accept import JobAcceptance, OfferedJob

DIGEST = "a" * 64


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(str(tmp_path / "artifacts"))


@pytest.fixture
def accept(tmp_path, store, artifacts, add_model):
    """Offer a job, and return its row."""

    def accept(
        key=None,
        sha256=DIGEST,
        check=None,
        confirm=lambda: None,
        max_open_jobs=9,
        write=artifacts.write_blob,
        **options,
    ):
        config = TandemConfig(home=tmp_path, limits={"max_open_jobs": max_open_jobs})
        offered = OfferedJob(add_model(), TrainingConfig(**options), sha256, lambda blob: write(blob, b"body"), key)
        return JobAcceptance(store, artifacts, config, check).accept(offered, confirm).row

    return accept


def fail_with(error):
    def fail(*_, **__):
        raise error

    return fail


def test_an_accepted_job_has_a_payload_and_a_row(accept, store, artifacts, blobs):
    job = accept(learning_rate=1e-3)
    assert blobs() == [job.payload_key]
    assert artifacts.read_blob(job.payload_key) == b"body"
    [row] = store.jobs.page("team", 10)
    assert (row.id, row.config, row.body_sha256) == (job.id, {**row.config, "learning_rate": 1e-3}, DIGEST)


def test_a_repeat_returns_the_first_job_and_stores_nothing(accept, store, blobs):
    job = accept("key")
    again = accept("key", max_open_jobs=1, write=fail_with(AssertionError("it was stored again")))
    assert again.id == job.id
    with pytest.raises(ConflictError):
        accept("key", sha256="b" * 64)
    assert (blobs(), len(store.jobs.page("team", 10))) == ([job.payload_key], 1)


def test_the_payload_is_checked_before_the_offer_is_confirmed(accept, add_model):
    seen = []
    job = accept(check=lambda *arguments: seen.append(arguments), confirm=lambda: seen.append("confirmed"))
    model = add_model()
    assert seen == [(model.base_model, job.payload_key, TrainingConfig(), model.path), "confirmed"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"confirm": fail_with(KeyboardInterrupt())}, KeyboardInterrupt),
        ({"check": fail_with(ConfigError("learning_rate", "is too high"))}, ConfigError),
        ({"check": fail_with(StageError("prepare", "It died.", "Retry."))}, StageError),
        ({"write": fail_with(OSError(errno.ENOSPC, "no space"))}, StorageFullError),
        ({"kl_penalty_coef": 0.1, "kl_penalty_reference_step": 7}, ConfigError),
        ({"kl_penalty_coef": 0.1, "kl_ref_adapter_path": "/etc"}, ConfigError),
    ],
)
def test_a_failure_leaves_nothing(accept, store, blobs, changes, error):
    with pytest.raises(error):
        accept(**changes)
    assert (blobs(), store.jobs.page("team", 10)) == ([], [])


def test_a_full_queue_is_noticed_before_the_payload_is_stored(accept):
    accept()
    with pytest.raises(QueueFullError):
        accept(max_open_jobs=1, write=fail_with(AssertionError("it was stored")))


def test_a_payload_stays_when_its_row_may_have_been_written(accept, store, blobs, monkeypatch):
    monkeypatch.setattr(store.jobs, "add", fail_with(NoAnswerError()))
    with pytest.raises(NoAnswerError):
        accept()
    assert len(blobs()) == 1
