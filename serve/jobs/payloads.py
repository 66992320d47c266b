"""Payloads: trajectory groups kept as blobs that a job or a log refers to."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.errors import StageError
from tandem.cluster.payloads.reading import PayloadError
from tandem.rl.errors import ConfigError, TrajectoryError
from tandem.serve.api.services import Services
from tandem.serve.api.validation import faults_of
from tandem.serve.errors import Fault, InvalidRequestError, NoAnswerError, StorageFullError, UnavailableError

T = TypeVar("T")

logger = logging.getLogger(__name__)
MAX_ACCEPTED_AT_ONCE = 8
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Checking a large payload takes long; in the threads that all routes share, some would be missing meanwhile.
_ACCEPTING = ThreadPoolExecutor(MAX_ACCEPTED_AT_ONCE, "accepting")


def disk_fault(services: Services) -> str | None:
    """Why nothing more may be kept on this disk; None while there is room."""
    least = services.config.limits.min_free_disk_bytes
    if services.artifacts.num_free_bytes >= least:
        return None
    return (
        f"The disk of the artifacts is nearly full: less than {least} bytes are free (limits.min_free_disk_bytes). "
        "Training jobs and logs are refused until there is room again; deleting models makes some."
    )


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns OSErrors of the artifact store into StorageFullError or UnavailableError."""
    try:
        yield
    except OSError as error:
        logger.error("The artifact store doesn't work", exc_info=True)
        sentence = f"The artifact store can't take the payload: {error.strerror or error}. Nothing was accepted."
        if error.errno in _FULL:
            raise StorageFullError(sentence, "disk_full") from error
        raise UnavailableError(sentence, "artifact_store_unavailable") from error


@contextmanager
def preparation_errors() -> Iterator[None]:
    """Turns what Preparation raises into errors of the request."""
    try:
        with storage_errors():
            yield
    except PayloadError as error:
        raise InvalidRequestError(faults_of(error.faults, ("body",))) from error
    except ConfigError as error:
        fault = Fault(("body", "experimental_config", error.field), error.reason)
        raise InvalidRequestError([fault], "invalid_training_config") from error
    except TrajectoryError as error:
        raise InvalidRequestError([Fault(("body", *error.location), error.reason)], "invalid_trajectory") from error
    except StageError as error:
        raise UnavailableError(f"The payload couldn't be checked. {error}", "preparation_failed") from error


@contextmanager
def stored(artifacts: Artifacts, file: Path, key: str) -> Iterator[str]:
    """Moves a finished file to where it is the durable blob `key`, before the block writes the row that refers to it.

    When the block fails, the blob is removed. When it isn't known whether the row was written, the blob stays;
    sweeping removes it if there is no such row. Raises UnavailableError or StorageFullError.
    """
    try:
        with storage_errors():
            artifacts.put_blob_file(file, key)
        yield key
    except NoAnswerError:
        raise
    except BaseException:
        delete_blobs(artifacts, [key])
        raise


async def accept(request: Request, work: Callable[[Callable[[], None]], T]) -> T:
    """The result of `work`, which runs in a thread to its end, whatever becomes of the request.

    It is given a function that raises ClientDisconnect when the client has hung up: to be asked before the work has
    effects, since nobody would learn of them.
    """
    loop, cancelled = asyncio.get_running_loop(), threading.Event()

    def check_connected() -> None:
        if cancelled.is_set() or asyncio.run_coroutine_threadsafe(request.is_disconnected(), loop).result(timeout=60):
            raise ClientDisconnect

    try:
        return await loop.run_in_executor(_ACCEPTING, partial(work, check_connected))
    except asyncio.CancelledError:
        cancelled.set()
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
