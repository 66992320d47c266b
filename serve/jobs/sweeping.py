"""Removes what a crash has left: files that never became payloads, and payloads that no job or log refers to."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime, timedelta

from tandem.cluster.artifacts import LOGS, PAYLOADS, Artifacts
from tandem.serve.api.services import Services
from tandem.serve.store.store import Store

logger = logging.getLogger(__name__)
PERIOD_S = 3600.0
MIN_AGE_S = 3600.0


def start_sweeping(services: Services) -> None:
    """Sweeps now and every hour, in a thread that ends with the process."""
    # Longer than a request may take from its first byte to the row that refers to its payload.
    min_age = timedelta(seconds=MIN_AGE_S + 2 * services.config.deadlines.prepare_s)

    def run() -> None:
        while True:
            try:
                sweep(services.store, services.artifacts, datetime.now(UTC) - min_age)
            except Exception:
                logger.warning("Sweeping failed; it is tried again in %d s", PERIOD_S, exc_info=True)
            time.sleep(PERIOD_S)

    threading.Thread(target=run, name="sweeping", daemon=True).start()


def sweep(store: Store, artifacts: Artifacts, written_before: datetime) -> list[str]:
    """Removes leftovers that were last written before then. Returns the names of the files and the keys of the blobs.

    Harmless while requests come in, and when several processes do it at once.
    """
    removed = []
    for file in artifacts.spool_dir.iterdir():
        if datetime.fromtimestamp(file.stat().st_mtime, UTC) < written_before:
            file.unlink(missing_ok=True)
            removed.append(file.name)
    blobs = [key for directory in (PAYLOADS, LOGS) for key in artifacts.list_blobs(directory)]
    for key in store.unknown_blobs(blobs):
        try:
            if artifacts.modified_at(key) >= written_before:
                continue
        except FileNotFoundError:  # another process was quicker
            continue
        artifacts.delete_blob(key)
        removed.append(key)
    if removed:
        logger.info("Removed what interrupted requests had left: %s", ", ".join(removed))
    return removed
