"""The ledger of a run and its directory: stored contents, and files that they reject."""

import json

import pytest

from tandem.runs.directory import Posting, RunDirectory
from tandem.runs.errors import RunDirectoryError
from tandem.runs.ledger import Ledger


def training(batch):
    return {"kind": "training", "version": batch + 1, "batch": batch, "time": 0.0}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_line_that_was_cut_off_is_removed(path):
    ledger = Ledger(path)
    ledger.append(training(0))
    with path.open("a") as file:
        file.write(json.dumps(training(1))[:-5])
    again = Ledger(path)
    assert again.num_trained == 1
    again.append(training(1))
    assert [json.loads(line)["batch"] for line in path.read_text().splitlines()] == [0, 1]


def test_a_whole_line_without_its_end_is_dropped(path):
    """The line may not have reached the disk, and the service has its contents."""
    path.write_text(json.dumps(training(0)))
    assert Ledger(path).num_trained == 0
    assert path.read_text() == ""


@pytest.mark.parametrize("content", ["hello\n", "[]\n", '{"kind": "training"}\n'])
def test_another_file_of_that_name_is_rejected(path, content):
    path.write_text(content)
    with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl"):
        Ledger(path)
    assert path.read_text() == content


def test_missing_lines_are_noticed(path):
    path.write_text("".join(json.dumps(training(batch)) + "\n" for batch in (0, 2)))
    with pytest.raises(RunDirectoryError, match=r"\[0, 2\]"):
        Ledger(path)


def test_a_nan_doesnt_break_the_file(path):
    ledger = Ledger(path)
    with pytest.raises(ValueError):
        ledger.append(training(0) | {"loss/train": float("nan")})
    ledger.append(training(0))
    assert Ledger(path).num_trained == 1


def test_two_runs_cant_have_one_directory(tmp_path):
    with RunDirectory(tmp_path):
        with pytest.raises(RunDirectoryError, match="Another"):
            RunDirectory(tmp_path).__enter__()
    with RunDirectory(tmp_path):
        pass


def test_state_survives(tmp_path):
    posting = Posting(batch=3, attempt=1, experimental_config={"learning_rate": 0.1})
    with RunDirectory(tmp_path) as directory:
        run_id = directory.begin({"name": "a"}).run_id
        directory.update(posting=posting)
    with RunDirectory(tmp_path) as directory:
        assert (directory.state.run_id, directory.state.posting) == (run_id, posting)


def test_metrics_without_a_state_are_rejected(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(training(0)) + "\n")
    with pytest.raises(RunDirectoryError, match=r"state\.json"):
        RunDirectory(tmp_path).__enter__()


def test_a_state_of_another_release_is_rejected(tmp_path):
    (tmp_path / "state.json").write_text('{"format": 9, "run_id": "x", "task": {}, "unknown": 1}')
    with pytest.raises(RunDirectoryError, match=r"state\.json"):
        RunDirectory(tmp_path).__enter__()


def test_a_place_that_cant_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="file/run"):
        RunDirectory(tmp_path / "file" / "run").__enter__()
