"""Room on the disk, and failures of the artifact store, as errors of the service."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import LimitsConfig
from tandem.serve.errors import StorageFullError, UnavailableError

logger = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_shortage(artifacts: Artifacts, limits: LimitsConfig) -> str | None:
    """Return the reason for rejecting payloads if disk space is short, else None."""
    if artifacts.num_free_bytes >= limits.min_free_disk_bytes:
        return None
    return (
        f"The artifact disk is nearly full: less than {limits.min_free_disk_bytes} bytes are free "
        "(limits.min_free_disk_bytes). Training jobs and logs are rejected until there is more space; delete models "
        "to free some."
    )


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn an OSError of the artifact store into StorageFullError or UnavailableError."""
    try:
        yield
    except OSError as error:
        logger.error("The artifact store failed", exc_info=True)
        sentence = f"The artifact store can't store the payload: {error.strerror or error}. Nothing was accepted."
        if error.errno in _FULL:
            raise StorageFullError(sentence, "disk_full") from error
        raise UnavailableError(sentence, "artifact_store_unavailable") from error
