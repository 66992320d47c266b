import os
import subprocess
import sys
import tempfile
import uuid

import pytest

from tandem.cluster.artifacts import ADAPTER_FILES, Artifacts, job_artifact_key, without_secrets
from tandem.cluster.errors import ArtifactError


@pytest.fixture(params=["local", "remote", "s3"])
def root(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return str(tmp_path / "artifacts") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def s3_server():
    """A local object store with the S3 protocol over HTTP."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """A bucket. The environment has the address of S3 and the credentials, as in docs/deploy.md."""
    from s3fs import S3FileSystem

    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    name = uuid.uuid4().hex
    S3FileSystem().mkdir(name)
    yield f"s3://{name}/tandem"
    S3FileSystem.clear_instance_cache()


def test_a_blob_comes_back_and_goes(root, tmp_path):
    artifacts = Artifacts(root, tmp_path / "cache")
    artifacts.write_blob("payloads/a.json.zst", b"\x00hello")
    assert Artifacts(root, tmp_path / "other").read_blob("payloads/a.json.zst") == b"\x00hello"
    artifacts.delete_blob("payloads/a.json.zst")
    artifacts.delete_blob("payloads/a.json.zst")
    with pytest.raises(ArtifactError, match=r"payloads/a\.json\.zst"):
        artifacts.read_blob("payloads/a.json.zst")


def test_the_files_of_a_job_are_listed_and_go_together(root, tmp_path):
    artifacts = Artifacts(root, tmp_path / "cache")
    assert artifacts.list_job_artifacts("j1") == {}
    for job, name, data in (("j1", "b.png", b"12"), ("j1", "a.png", b"1"), ("j2", "c.png", b"")):
        artifacts.write_blob(job_artifact_key(job, name), data)
    assert list(artifacts.list_job_artifacts("j1").items()) == [("a.png", 1), ("b.png", 2)]
    assert artifacts.read_blob(job_artifact_key("j1", "b.png")) == b"12"
    artifacts.delete_job_artifacts("j1")
    artifacts.delete_job_artifacts("j1")
    assert artifacts.list_job_artifacts("j1") == {}
    assert artifacts.list_job_artifacts("j2") == {"c.png": 0}


def test_a_checkpoint_travels_to_another_node(root, tmp_path):
    writer, reader = Artifacts(root, tmp_path / "writer"), Artifacts(root, tmp_path / "reader")
    directory = writer.checkpoints_dir / "d1"
    directory.mkdir()
    for name in ("manifest.json", "adapter_model.safetensors"):
        (directory / name).write_text(name)
    writer.push_checkpoint("d1")
    pulled = reader.pull_checkpoint("d1")
    assert sorted(f.name for f in pulled.iterdir()) == ["adapter_model.safetensors", "manifest.json"]
    assert (pulled / "manifest.json").read_text() == "manifest.json"
    assert reader.pull_checkpoint("d1") == pulled
    writer.delete_checkpoint("d1")
    with pytest.raises(ArtifactError, match="d1"):
        Artifacts(root, tmp_path / "third").pull_checkpoint("d1")


def test_an_adapter_travels_without_the_optimizer(root, tmp_path):
    writer, reader = Artifacts(root, tmp_path / "writer"), Artifacts(root, tmp_path / "reader")
    directory = writer.checkpoints_dir / "d1"
    directory.mkdir()
    for name in ("manifest.json", *ADAPTER_FILES, "optimizer.safetensors"):
        (directory / name).write_text(name)
    writer.push_checkpoint("d1")
    pulled = reader.pull_adapter("d1")
    assert {name: (pulled / name).read_text() for name in ADAPTER_FILES} == {name: name for name in ADAPTER_FILES}
    assert (pulled / "optimizer.safetensors").exists() == ("://" not in root)
    assert reader.pull_adapter("d1") == pulled
    whole = reader.pull_checkpoint("d1")
    assert (whole / "optimizer.safetensors").exists()
    assert reader.pull_adapter("d1") == whole
    reader.delete_checkpoint("d1")
    with pytest.raises(ArtifactError, match="d1"):
        reader.pull_adapter("d1")


def test_what_another_process_has_just_stored_is_seen(bucket, tmp_path):
    reader = Artifacts(bucket, tmp_path / "reader")  # it may have cached that there was nothing
    with pytest.raises(ArtifactError, match="d1"):
        reader.pull_checkpoint("d1")
    assert reader.list_blobs("payloads") == []
    write = f"""
from tandem.cluster.artifacts import Artifacts
artifacts = Artifacts({bucket!r}, {str(tmp_path / "writer")!r})
(artifacts.checkpoints_dir / "d1").mkdir()
(artifacts.checkpoints_dir / "d1" / "manifest.json").write_text("m")
artifacts.push_checkpoint("d1")
artifacts.write_blob("payloads/p", b"1")
"""
    subprocess.run([sys.executable, "-c", write], check=True, timeout=120)
    assert (reader.pull_checkpoint("d1") / "manifest.json").read_text() == "m"
    assert reader.list_blobs("payloads") == ["payloads/p"]
    assert reader.read_blob("payloads/p") == b"1"


def test_no_partial_file_is_left_beside_a_blob(tmp_path):
    artifacts = Artifacts(str(tmp_path))
    artifacts.write_blob("payloads/a", b"x")
    assert [p.name for p in (tmp_path / "payloads").iterdir()] == ["a"]


@pytest.mark.parametrize("key", ["../a", "a/../../b", "/etc/passwd", "..", ".", "", "a//b", "a/./b", "a\0", "a/"])
def test_a_key_never_leads_out_of_the_root(root, tmp_path, key):
    (tmp_path / "a").write_bytes(b"secret")
    artifacts = Artifacts(root, tmp_path / "cache")
    for use in (
        artifacts.read_blob,
        artifacts.open_blob,
        artifacts.delete_blob,
        artifacts.list_blobs,
        artifacts.modified_at,
        artifacts.pull_checkpoint,
        artifacts.pull_adapter,
        artifacts.push_checkpoint if "://" in root else artifacts.pull_checkpoint,
        artifacts.delete_checkpoint,
        artifacts.list_job_artifacts,
        artifacts.delete_job_artifacts,
        lambda key: artifacts.write_blob(key, b"x"),
        lambda key: artifacts.put_blob_file(tmp_path / "a", key),
    ):
        with pytest.raises(ArtifactError, match="can't be a key"):
            use(key)
    assert (tmp_path / "a").read_bytes() == b"secret"


def test_messages_name_the_root_without_its_secrets(tmp_path):
    artifacts = Artifacts("memory://user:pa55@host/x?token=pa55", tmp_path)
    with pytest.raises(ArtifactError) as caught:
        artifacts.read_blob("payloads/none")
    assert "memory://...@host/x?..." in str(caught.value)
    assert without_secrets("s3://bucket/prefix") == "s3://bucket/prefix"
    assert without_secrets("/srv/a@b/c") == "/srv/a@b/c"


def test_the_shared_cache_is_not_one_that_others_can_write_to(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = Artifacts("memory://cached").checkpoints_dir.parent
    assert cache.parent == tmp_path and cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    with pytest.raises(ArtifactError, match="others can write"):
        Artifacts("memory://cached")
    target = cache.rename(tmp_path / "elsewhere")
    target.chmod(0o700)
    os.symlink(target, cache)
    with pytest.raises(ArtifactError, match="others can write"):
        Artifacts("memory://cached")
