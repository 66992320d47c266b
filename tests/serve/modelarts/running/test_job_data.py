"""The data of a job: paths and dataset versions."""

import pytest

from tandem.serve.modelarts.running.job_data import data_locations
from tandem.serve.modelarts.running.supervision import JobFailedError
from tandem.serve.modelarts.settings.project_storage import ProjectStorage
from tandem.serve.modelarts.settings.run_settings import RunSettings
from tandem.serve.modelarts.store.status import UserJobStatus

DATASET = {"dataset_id": "d", "dataset_version_id": "1"}


@pytest.fixture
def files(tmp_path):
    """Directories with one file each: two data paths and a dataset version."""
    for directory in ("bucket/a", "bucket/b", "datasets/d/1"):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "x.txt").write_text("1")
    return tmp_path


@pytest.fixture
def urls(files, modelarts):
    """A function that returns the data URLs of settings, relative to the project's storage."""

    def urls(**settings):
        found = data_locations(RunSettings(**settings), ProjectStorage(str(files)), modelarts.datasets, "team")
        return [location.url.removeprefix(f"{files}/") for location in found]

    return urls


def test_data_is_named_in_three_ways(urls):
    assert urls(data_url="/bucket/a") == ["bucket/a"]
    assert urls(**DATASET) == ["datasets/d/1"]
    paths = [{"type": "obs", "data_url": "/bucket/b"}, {"type": "obs", "data_url": "obs://bucket/a/x.txt"}]
    assert urls(data_source=paths) == ["bucket/b", "bucket/a/x.txt"]
    assert urls(data_source=[{"type": "dataset", "dataset_id": "d", "dataset_version": "1"}]) == ["datasets/d/1"]


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"data_url": "/bucket/nothing/"}, "data_url"),
        ({"dataset_id": "d", "dataset_version_id": "9"}, "dataset_id"),
        ({"data_source": [{"type": "obs", "data_url": "/bucket/nothing"}]}, r"data_source\[0\]\.data_url"),
        ({"data_source": [{"type": "dataset", "dataset_id": "d", "dataset_version": "9"}]}, r"data_source\[0\]"),
    ],
)
def test_the_error_names_missing_data(urls, settings, place):
    with pytest.raises(JobFailedError, match=place) as error:
        urls(**settings)
    assert error.value.status is UserJobStatus.SUBMIT_FAILED


def test_a_changed_dataset_version_is_rejected(files, urls):
    for _ in range(2):
        assert urls(**DATASET) == ["datasets/d/1"]
    (files / "datasets" / "d" / "1" / "y.txt").write_text("2")
    with pytest.raises(JobFailedError, match=r"dataset_id.*changed") as error:
        urls(**DATASET)
    assert error.value.status is UserJobStatus.SUBMIT_FAILED
