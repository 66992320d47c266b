import os
import shutil
import time
import uuid
from collections import namedtuple

import pytest

from tandem.cluster import checkpoint_cache
from tandem.cluster.artifacts import Artifacts

Usage = namedtuple("Usage", "total used free")
HOUR = 3600


@pytest.fixture(autouse=True)
def small_disk(monkeypatch):
    """A disk of 1000 bytes, of which copies may use 200."""
    monkeypatch.setattr(checkpoint_cache.shutil, "disk_usage", lambda _: Usage(1000, 0, 1000))


def make_copy(directory, name, num_bytes, used_hours_ago):
    copy = directory / name
    copy.mkdir(parents=True)
    (copy / "manifest.json").write_bytes(b"m" * num_bytes)
    then = time.time() - used_hours_ago * HOUR
    os.utime(copy, (then, then))
    return copy


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_least_recently_used_copies_go_until_the_rest_fits(tmp_path):
    for name, hours in (("a", 5), ("b", 9), ("c", 3), ("d", 7)):
        make_copy(tmp_path, name, 80, hours)
    checkpoint_cache.make_room(tmp_path)
    assert names(tmp_path) == ["a", "c"]  # 160 bytes instead of 320


def test_nothing_goes_while_all_fits(tmp_path):
    for name in "ab":
        make_copy(tmp_path, name, 100, 9)
    checkpoint_cache.make_room(tmp_path)
    assert names(tmp_path) == ["a", "b"]


def test_what_was_used_in_the_last_hour_stays_whatever_it_takes(tmp_path):
    make_copy(tmp_path, "in-use", 900, 0.9)
    old = make_copy(tmp_path, "old", 10, 9)
    checkpoint_cache.mark_used(old)
    make_copy(tmp_path, "unused", 10, 2)
    checkpoint_cache.make_room(tmp_path)
    assert names(tmp_path) == ["in-use", "old"]


def test_a_version_whose_copy_has_gone_is_copied_again(tmp_path):
    remote = f"memory://{uuid.uuid4().hex}"
    artifacts = Artifacts(remote, tmp_path / "cache")
    for digest in ("first", "second"):
        copy = make_copy(artifacts.checkpoints_dir, digest, 150, 0)
        artifacts.push_checkpoint(digest)
        os.utime(copy, (0, 0))
    assert artifacts.pull_checkpoint("second").name == "second"  # already there: not copied, but marked as used

    third = Artifacts(remote, tmp_path / "other")
    shutil.copytree(make_copy(third.checkpoints_dir, "third", 150, 0), artifacts.checkpoints_dir / "third")
    artifacts.push_checkpoint("third")
    assert names(artifacts.checkpoints_dir) == ["second", "third"]

    again = artifacts.pull_checkpoint("first")
    assert (again / "manifest.json").read_bytes() == b"m" * 150


def test_a_local_root_is_no_cache(tmp_path):
    artifacts = Artifacts(str(tmp_path / "artifacts"))
    for digest in ("first", "second"):
        make_copy(artifacts.checkpoints_dir, digest, 900, 9)
        artifacts.push_checkpoint(digest)
        artifacts.pull_checkpoint(digest)
    assert names(artifacts.checkpoints_dir) == ["first", "second"]
