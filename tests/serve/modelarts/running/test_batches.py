"""Batches of recorded trajectory groups."""

import pytest

from tandem.serve.modelarts.running.batches import Batch, read_batches
from tandem.serve.modelarts.running.supervision import JobFailedError
from tandem.serve.modelarts.settings.project_storage import ProjectStorage


@pytest.fixture
def data(tmp_path):
    """A directory with five lines in two JSON Lines files, blank lines, and another file."""
    directory = tmp_path / "bucket" / "data"
    directory.mkdir(parents=True)
    (directory / "b.jsonl").write_text("4\n5\n")
    (directory / "a.jsonl").write_text("1\n\n2\n  3  \n")
    (directory / "notes.txt").write_text("not data")
    return [ProjectStorage(str(tmp_path)).resolve("/bucket/data")]


def test_each_epoch_reads_all_lines_in_batches(data):
    batches = list(read_batches(data, 2, 2))
    assert [(b.index, b.epoch, b.lines) for b in batches] == [
        (0, 1, [b"1", b"2"]),
        (1, 1, [b"3", b"4"]),
        (2, 1, [b"5"]),
        (3, 2, [b"1", b"2"]),
        (4, 2, [b"3", b"4"]),
        (5, 2, [b"5"]),
    ]
    assert batches[1].places == ["a.jsonl line 4", "b.jsonl line 1"]


def test_the_error_names_the_place_of_an_invalid_group():
    batch = Batch(0, 1, [b'{"trajectories": 3}'], ["a.jsonl line 7"])
    with pytest.raises(JobFailedError, match=r"a\.jsonl line 7.*trajectories"):
        batch.check()
