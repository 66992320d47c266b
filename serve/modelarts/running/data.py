"""Where a job's data lies, whichever of the three ways its settings name it."""

from __future__ import annotations

from tandem.serve.modelarts.api.schemas import RunSettings
from tandem.serve.modelarts.running.project_storage import Location, ProjectStorage
from tandem.serve.modelarts.running.supervision import JobFailedError
from tandem.serve.modelarts.store.datasets import DatasetVersions
from tandem.serve.modelarts.store.status import UserJobStatus


def data_locations(
    settings: RunSettings, storage: ProjectStorage, datasets: DatasetVersions, project: str
) -> list[Location]:
    """At least one place, each of which exists. Raises JobFailedError, also for a dataset version that has changed."""
    versions = [(settings.dataset_id, settings.dataset_version_id)]
    versions += [(source.dataset_id, source.dataset_version) for source in settings.data_source or ()]
    urls = [settings.data_url, *(source.data_url for source in settings.data_source or ())]
    places = [storage.resolve(url) for url in urls if url]
    for place in places:
        if not place.exists():
            raise JobFailedError(f"data_url: there is nothing at {place.url}.", UserJobStatus.SUBMIT_FAILED)
    for dataset_id, version in versions:
        if not dataset_id or not version:
            continue
        place = storage.dataset(dataset_id, version)
        if not place.is_directory():
            raise JobFailedError(
                f"dataset_id: dataset {dataset_id} has no version {version}; it would be the directory {place.url}.",
                UserJobStatus.SUBMIT_FAILED,
            )
        if not datasets.check(project, dataset_id, version, place.fingerprint()):
            raise JobFailedError(
                f"dataset_version_id: version {version} of dataset {dataset_id} was changed since a job first used it. "
                "Put what it held back, or give the new contents a version of their own.",
                UserJobStatus.SUBMIT_FAILED,
            )
        places.append(place)
    return places
