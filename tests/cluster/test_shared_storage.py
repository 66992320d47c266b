"""The service doesn't start on a cluster whose nodes don't share the store and the artifacts."""

import pytest

from tandem.cluster import shared_storage
from tandem.cluster.config import TandemConfig
from tandem.cluster.shared_storage import NotSharedError, check_shared, local_folders

POSTGRES, S3 = "postgresql://me@there/db", "memory://artifacts"  # neither is a local folder


def config(tmp_path, **settings):
    return TandemConfig(home=tmp_path / "home", **settings)


class Cluster:
    """Nodes, some of which are on another machine or don't mount the folders. Records the nodes that were checked."""

    def __init__(self, monkeypatch, *nodes):
        self.asked = []
        alive = [{"NodeID": f"n{i}", "NodeManagerAddress": f"10.0.0.{i}", "Alive": True} for i in range(len(nodes))]
        dead = {"NodeID": "gone", "NodeManagerAddress": "10.0.0.9", "Alive": False}
        monkeypatch.setattr(shared_storage.ray, "nodes", lambda: [*alive, dead])

        def look_from(asked, files):
            self.asked = asked
            assert all(file.is_file() for file in files)
            machines = {"here": shared_storage.machine(), "elsewhere": "another"}
            return {f"n{i}": (machines[where], [sees] * len(files)) for i, (where, sees) in enumerate(nodes)}

        monkeypatch.setattr(shared_storage, "_look_from", look_from)


def test_which_folders_are_of_this_machine_alone(tmp_path):
    home = tmp_path / "home"
    assert local_folders(config(tmp_path)) == {"store": home, "artifacts": home / "artifacts"}
    assert local_folders(config(tmp_path, store_url="sqlite:////srv/x.db?timeout=3", artifacts=S3)) == {
        "store": tmp_path.__class__("/srv")
    }
    assert local_folders(config(tmp_path, store_url=POSTGRES, artifacts=f"file://{tmp_path}")) == {
        "artifacts": tmp_path
    }
    assert local_folders(config(tmp_path, store_url=POSTGRES, artifacts=S3)) == {}


def test_one_node_is_asked_nothing(monkeypatch, tmp_path):
    cluster = Cluster(monkeypatch, ("here", True))
    check_shared(config(tmp_path))
    assert cluster.asked == [] and not (tmp_path / "home").exists()


def test_servers_are_not_asked_for(monkeypatch, tmp_path):
    cluster = Cluster(monkeypatch, ("here", True), ("elsewhere", False))
    check_shared(config(tmp_path, store_url=POSTGRES, artifacts=S3))
    assert cluster.asked == []


def test_a_folder_that_all_nodes_mount_is_fine(monkeypatch, tmp_path):
    cluster = Cluster(monkeypatch, ("here", True), ("elsewhere", True))
    check_shared(config(tmp_path, store_url=POSTGRES))
    assert cluster.asked == ["n0", "n1"]
    assert list((tmp_path / "home" / "artifacts").iterdir()) == []  # the probe file was removed


@pytest.mark.parametrize(
    ("node", "settings", "said"),
    [
        (("elsewhere", True), {}, ["2 nodes", "10.0.0.1 is another machine", "PostgreSQL"]),
        (("elsewhere", False), {"artifacts": S3}, ["10.0.0.1 doesn't have the store", "PostgreSQL"]),
        (("here", False), {"store_url": POSTGRES}, ["10.0.0.1 doesn't see the artifacts", "s3://bucket/prefix"]),
    ],
)
def test_a_node_that_does_not_reach_them_is_named_with_the_remedy(monkeypatch, tmp_path, node, settings, said):
    Cluster(monkeypatch, ("here", True), node)
    with pytest.raises(NotSharedError) as error:
        check_shared(config(tmp_path, **settings))
    assert all(words in str(error.value) for words in said), str(error.value)
    assert not list(tmp_path.rglob(".seen-by-all-*"))


def test_every_node_is_really_asked(ray_local, tmp_path):
    import ray

    [node] = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    there, absent = tmp_path / "there", tmp_path / "absent"
    there.touch()
    assert shared_storage._look_from([node], [there, absent]) == {node: (shared_storage.machine(), [True, False])}
