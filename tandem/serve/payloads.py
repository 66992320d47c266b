"""Request bodies kept as compressed blobs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import zstandard

from tandem.cluster.artifacts import Artifacts
from tandem.serve.errors import UnavailableError

logger = logging.getLogger(__name__)


@contextmanager
def write_payload(artifacts: Artifacts, key: str, body: bytes) -> Iterator[str]:
    """Makes a body durable before the block writes the row that refers to it, and removes it if the block fails.

    Raises UnavailableError when the artifact store can't take it.
    """
    try:
        artifacts.write_blob(key, zstandard.ZstdCompressor().compress(body))
    except OSError as error:
        logger.error("The artifact store can't take %s", key, exc_info=True)
        raise UnavailableError(
            f"The artifact store can't take the payload: {error.strerror or error}. Nothing was accepted.",
            "artifact_store_unavailable",
        ) from error
    try:
        yield key
    except BaseException:
        delete_blobs(artifacts, [key])
        raise


def delete_blobs(artifacts: Artifacts, keys: Iterable[str]) -> None:
    """Removes blobs that nothing refers to. One that can't be removed costs space, not correctness."""
    for key in keys:
        try:
            artifacts.delete_blob(key)
        except OSError:
            logger.warning("Blob %s can't be removed", key, exc_info=True)


def delete_job_artifacts(artifacts: Artifacts, job_ids: Iterable[str]) -> None:
    """Removes all files that jobs have left. Those that can't be removed cost space, not correctness."""
    for job_id in job_ids:
        try:
            artifacts.delete_job_artifacts(job_id)
        except OSError:
            logger.warning("The artifacts of job %s can't be removed", job_id, exc_info=True)
