import pytest

from tandem.rl import durability
from tandem.rl.durability import remove_unfinished, write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_whole(tmp_path / "state.json", b"before")
    write_whole(tmp_path / "state.json", b"after")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"state.json": b"after"}


def test_what_a_kill_leaves_beside_a_file_is_removed(tmp_path, monkeypatch):
    write_whole(tmp_path / "state.json", b"before")

    def die(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(durability, "sync", die)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "state.json", b"after")
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"state.json": b"before"}
