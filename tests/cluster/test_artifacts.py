import uuid

import pytest

from tandem.cluster.artifacts import Artifacts, job_artifact_key
from tandem.cluster.errors import ArtifactError


@pytest.fixture(params=["local", "remote"])
def root(request, tmp_path):
    return str(tmp_path / "artifacts") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


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


def test_no_partial_file_is_left_beside_a_blob(tmp_path):
    artifacts = Artifacts(str(tmp_path))
    artifacts.write_blob("payloads/a", b"x")
    assert [p.name for p in (tmp_path / "payloads").iterdir()] == ["a"]
