import os
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tandem.cluster.artifacts import Artifacts
from tandem.serve.ingest.spool import Spool
from tandem.serve.jobs.sweeping import sweep


@pytest.fixture(params=["local", "remote"])
def artifacts(request, tmp_path):
    root = str(tmp_path / "kept") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return Artifacts(root, tmp_path / "cache")


def ahead(**time):
    """Return a time in the future, from which files written now are old."""
    return datetime.now(UTC) + timedelta(**time)


def test_what_nothing_refers_to_goes_when_it_is_old(store, add_model, artifacts):
    model = add_model()
    store.jobs.add(str(uuid.uuid4()), model.id, "payloads/of_a_job", {}, "0" * 64)
    store.logs.add(str(uuid.uuid4()), model.id, "team", "val", "logs/of_a_log", {})
    lost = ["logs/lost", "payloads/lost"]
    for key in ("payloads/of_a_job", "logs/of_a_log", *lost, "jobs/1/picture.png"):
        artifacts.write_blob(key, b"x")
    spool = Spool(artifacts.spool_dir)
    assert sweep(store, artifacts, ahead(minutes=-1)) == []
    assert sorted(sweep(store, artifacts, ahead(minutes=1))) == sorted([spool.path.name, *lost])
    assert not spool.path.exists()
    for key in ("payloads/of_a_job", "logs/of_a_log", "jobs/1/picture.png"):
        assert artifacts.read_blob(key) == b"x"
    assert sweep(store, artifacts, ahead(minutes=1)) == []
    spool.discard()


def test_an_archive_that_was_unpacked_goes_too(store, artifacts):
    left = artifacts.spool_dir / "adapter-left"
    left.mkdir()
    (left / "adapter_config.json").touch()
    assert sweep(store, artifacts, ahead(minutes=-1)) == []
    assert sweep(store, artifacts, ahead(minutes=1)) == ["adapter-left"] and not left.exists()


def test_a_body_that_goes_on_arriving_stays(store, tmp_path):
    artifacts = Artifacts(str(tmp_path))
    spool = Spool(artifacts.spool_dir)
    an_hour_ago = time.time() - 3600
    os.utime(spool.path, (an_hour_ago, an_hour_ago))
    spool.write(os.urandom(1 << 20))
    assert sweep(store, artifacts, ahead(minutes=-1)) == []
    spool.discard()
    assert list(artifacts.spool_dir.iterdir()) == []


def test_an_empty_store_of_artifacts_is_swept(store, artifacts):
    assert sweep(store, artifacts, ahead(minutes=1)) == []


def test_many_blobs_are_asked_about_in_parts(store, add_model):
    model = add_model()
    keys = [f"payloads/{number}" for number in range(1200)]
    store.jobs.add(str(uuid.uuid4()), model.id, keys[1100], {}, "0" * 64)
    assert store.garbage.unknown_blobs(keys) == keys[:1100] + keys[1101:]
