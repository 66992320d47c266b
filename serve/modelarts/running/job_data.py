"""The data of a job, in each of the three ways in which settings can name it."""

from __future__ import annotations

from tandem.serve.modelarts.running.supervision import JobFailedError
from tandem.serve.modelarts.settings.project_storage import Location, ProjectStorage
from tandem.serve.modelarts.settings.run_settings import RunSettings
from tandem.serve.modelarts.store.datasets import DatasetVersions
from tandem.serve.modelarts.store.status import UserJobStatus


def data_locations(
    settings: RunSettings, storage: ProjectStorage, datasets: DatasetVersions, project: str
) -> list[Location]:
    """Return at least one location, each of which exists. Raises JobFailedError, also for a changed dataset version."""
    locations = []
    for field, url in settings.data_urls():
        location = storage.resolve(url)
        if not location.exists():
            raise _failed(f"{field}: there is no file or directory at {location.url}.")
        locations.append(location)
    for field, dataset_id, version in settings.datasets():
        location = storage.dataset(dataset_id, version)
        if not location.is_directory():
            raise _failed(
                f"{field}: dataset {dataset_id} has no version {version}. Its files would be in {location.url}."
            )
        if not datasets.check(project, dataset_id, version, location.fingerprint()):
            raise _failed(
                f"{field}: version {version} of dataset {dataset_id} was changed after a job first used it. "
                "Restore its files, or store the new files as another version."
            )
        locations.append(location)
    return locations


def _failed(message: str) -> JobFailedError:
    return JobFailedError(message, UserJobStatus.SUBMIT_FAILED)
