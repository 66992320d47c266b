"""The contents of uploaded files: removed once nothing needs them."""

from __future__ import annotations

import logging
from datetime import datetime

from tandem.cluster.artifacts import FILES, Artifacts
from tandem.serve.finetuning.store.store import FineTuningStore

logger = logging.getLogger(__name__)


def remove_unused(store: FineTuningStore, artifacts: Artifacts) -> None:
    """Delete the contents of deleted and expired files that no open job needs. A failure is retried later."""
    for file in store.files.unused():
        try:
            artifacts.delete_blob(file.blob_key)
        except OSError:
            logger.warning("Can't delete the contents of %s yet", file.id, exc_info=True)
        else:
            store.files.forget(file.id)


def remove_leftovers(store: FineTuningStore, artifacts: Artifacts, written_before: datetime) -> None:
    """Delete contents without a row, from uploads that were interrupted before the given time."""
    for key in store.files.unknown_blobs(artifacts.list_blobs(FILES)):
        try:
            if artifacts.modified_at(key) < written_before:
                artifacts.delete_blob(key)
        except FileNotFoundError:  # another process was quicker
            continue
