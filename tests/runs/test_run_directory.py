import pytest

from tandem.rl import durability
from tandem.runs.directory import RunDirectory


def test_a_directory_has_no_trace_of_writes_that_were_killed(tmp_path, monkeypatch):
    def die(path):
        raise KeyboardInterrupt

    with RunDirectory(tmp_path) as directory:
        directory.begin({})
        with monkeypatch.context() as patch:
            patch.setattr(durability, "sync", die)
            with pytest.raises(KeyboardInterrupt):
                directory.store_batch(0, [], {}, oldest_version=0)
            with pytest.raises(KeyboardInterrupt):
                directory.update(task={"seed": 1})
    assert len(list((tmp_path / "batches").iterdir())) == 1
    with RunDirectory(tmp_path) as directory:
        assert directory.state.task == {}
        assert not directory.has_batch(0)
    assert not list((tmp_path / "batches").iterdir())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["batches", "lock", "state.json"]
