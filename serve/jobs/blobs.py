"""Blobs of jobs and logs: stored together with the row that refers to them, deleted once nothing does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tandem.cluster.artifacts import Artifacts
from tandem.serve.errors import NoAnswerError
from tandem.serve.jobs.storage import storage_errors

logger = logging.getLogger(__name__)


@contextmanager
def stored(artifacts: Artifacts, key: str, write: Callable[[str], object]) -> Iterator[str]:
    """Store the blob `key` by `write`, for a block that then writes the row that refers to it.

    If the block fails, the blob is deleted. If the store doesn't answer, the row may exist, so the blob stays; sweeping
    deletes it if there is no row. Raises UnavailableError or StorageFullError.
    """
    try:
        with storage_errors():
            write(key)
        yield key
    except NoAnswerError:
        raise
    except BaseException:
        delete_blobs(artifacts, [key])
        raise


def delete_blobs(artifacts: Artifacts, keys: Iterable[str]) -> None:
    """Delete blobs that nothing refers to. A failure is logged: a leftover blob only takes space."""
    for key in keys:
        try:
            artifacts.delete_blob(key)
        except OSError:
            logger.warning("Can't delete blob %s", key, exc_info=True)


def delete_traces(artifacts: Artifacts, job_ids: Iterable[str]) -> None:
    """Delete the traces of these jobs' tokens. A failure is logged, and sweeping or retention tries again."""
    for job_id in job_ids:
        try:
            artifacts.delete_traces(job_id)
        except OSError:
            logger.warning("Can't delete the traces of job %s", job_id, exc_info=True)


def delete_job_artifacts(artifacts: Artifacts, job_ids: Iterable[str]) -> None:
    """Delete all files of these jobs. A failure is logged: leftover files only take space."""
    for job_id in job_ids:
        try:
            artifacts.delete_job_artifacts(job_id)
        except OSError:
            logger.warning("Can't delete the artifacts of job %s", job_id, exc_info=True)
