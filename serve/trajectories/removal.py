"""Deletes trajectories that nobody may see any more: by retention, by a project's wish, or with their model.

A source is marked in the store first, so that no request finds it any more; its payload, the traces of its tokens and
its rows in the index go afterwards. A crash in between is made good by the next call.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TrajectoriesConfig
from tandem.serve.jobs.blobs import delete_traces
from tandem.serve.store.store import Store

logger = logging.getLogger(__name__)


def mark_surplus(store: Store, settings: TrajectoriesConfig) -> int:
    """Mark what exceeds the limits as removed. Return the number of jobs and log entries."""
    older_than, keep_bytes = limits(settings, store.database.now())
    reasons = {
        "age": f"Trajectories are kept for {settings.keep_days or 0:g} days (trajectories.keep_days).",
        "bytes": f"Trajectories are kept up to {settings.keep_bytes} bytes, the newest ones (trajectories.keep_bytes).",
    }
    number = store.trajectory_index.mark_removable(older_than, keep_bytes, reasons)
    if number:
        logger.info("Retention removed the trajectories of %d training jobs and log entries", number)
    return number


def limits(settings: TrajectoriesConfig, now: datetime) -> tuple[datetime | None, int | None]:
    """Return the time before which trajectories are surplus, and the size beyond which they are."""
    return None if settings.keep_days is None else now - timedelta(days=settings.keep_days), settings.keep_bytes


def remove_marked(store: Store, artifacts: Artifacts) -> int:
    """Delete the payloads and rows of marked sources, and of projects that keep none once their jobs have ended.

    Return the number of sources that are gone. Raises the last OSError, after the others are done.
    """
    index, number, failure = store.trajectory_index, 0, None
    index.mark_unkept()
    for source in index.to_remove():
        try:
            artifacts.delete_blob(source.payload_key)
        except OSError as error:
            failure = error
            continue
        if source.kind == "job":
            delete_traces(artifacts, [source.id])
        index.drop_rows(source.number)
        index.removed(source.number)
        number += 1
    if failure is not None:
        raise failure
    return number
