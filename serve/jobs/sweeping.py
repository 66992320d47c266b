"""Removes files that nothing refers to: leftovers of a crash, and checkpoints of deleted versions and runs."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from tandem.cluster.artifacts import CALLS, DATASETS, LOGS, PAYLOADS, TRACES, UPLOADS, Artifacts
from tandem.cluster.config import DeadlinesConfig, RetentionConfig, TinkerConfig
from tandem.serve.jobs.blobs import delete_traces
from tandem.serve.store.store import Store

logger = logging.getLogger(__name__)
PERIOD_S = 3600.0
RUNS_PERIOD_S = 60.0
"""Runs replace a checkpoint every few minutes."""
MIN_AGE_S = 3600.0


def start_sweeping(
    store: Store, artifacts: Artifacts, deadlines: DeadlinesConfig, retention: RetentionConfig, tinker: TinkerConfig
) -> None:
    """Sweep now and every hour, and runs every minute, in threads that end with the process."""
    # Longer than a request may take from its first byte to the row that refers to its payload.
    min_age = timedelta(seconds=MIN_AGE_S + 2 * deadlines.prepare_s)
    # Longer than a request, or a job's start, may need a version after it has found it.
    in_use = timedelta(seconds=MIN_AGE_S + max(deadlines.inference_s, deadlines.load_s))

    def everything() -> None:
        sweep(store, artifacts, datetime.now(UTC) - min_age)
        store.usage.compact()
        apply_retention(store, artifacts, retention, store.database.now() - in_use)

    def runs() -> None:
        sweep_runs(store, artifacts, tinker.result_s, store.database.now() - in_use)

    for name, action, period_s in (("sweeping", everything, PERIOD_S), ("sweeping of runs", runs, RUNS_PERIOD_S)):
        threading.Thread(target=_repeat, args=(action, period_s), name=name, daemon=True).start()


def _repeat(action: Callable[[], None], period_s: float) -> None:
    while True:
        try:
            action()
        except Exception:
            logger.warning("Sweeping failed; the next attempt is in %d s", period_s, exc_info=True)
        time.sleep(period_s)


def sweep_runs(store: Store, artifacts: Artifacts, result_s: float, retired_before: datetime) -> None:
    """Forget results older than `result_s`, delete expired checkpoints, and the files that runs don't need any more."""
    store.run_upkeep.forget_results(result_s)
    for path in store.run_upkeep.expire_checkpoints():
        logger.info("Deleted checkpoint %s, whose time is over", path)
    remove_unused_checkpoints(store, artifacts, retired_before)


def sweep(store: Store, artifacts: Artifacts, written_before: datetime) -> list[str]:
    """Delete spool files, payloads, datasets and uploads without a row, last written before then.

    Return their names and keys.

    Safe while requests arrive, and when several processes sweep at once.
    """
    removed = []
    for file in artifacts.spool_dir.iterdir():
        if datetime.fromtimestamp(file.stat().st_mtime, UTC) < written_before:
            if file.is_dir():  # of an archive that was unpacked
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)
            removed.append(file.name)
    blobs = [key for directory in (PAYLOADS, LOGS, DATASETS, CALLS) for key in artifacts.list_blobs(directory)]
    store.wandb.forget_unused(written_before)
    uploads = store.wandb.unknown_blobs(artifacts.list_blobs(UPLOADS))
    for key in (*store.garbage.unknown_blobs(blobs), *uploads):
        try:
            if artifacts.modified_at(key) >= written_before:
                continue
        except FileNotFoundError:  # another process was quicker
            continue
        artifacts.delete_blob(key)
        removed.append(key)
    traced = store.garbage.jobs_without_model(artifacts.traced_jobs())
    delete_traces(artifacts, traced)  # of a job that ended after its model was deleted
    removed += [f"{TRACES}/{job_id}" for job_id in traced]
    if removed:
        logger.info("Removed leftovers of interrupted requests: %s", ", ".join(removed))
    return removed


def apply_retention(store: Store, artifacts: Artifacts, settings: RetentionConfig, marked_before: datetime) -> None:
    """Mark what is surplus, and delete the files of what was marked before the given time.

    An interrupted call is completed by the next one. Several processes may do this at once. Without limits, only what
    was marked earlier is deleted.
    """
    if settings.keep_versions is not None:
        for version in store.retention.retire(settings.keep_versions):
            logger.info("Retention deleted version %s:step%d", version.model, version.step)
    if settings.keep_optimizer is not None:
        store.retention.expire_optimizers(settings.keep_optimizer)
    remove_unused_checkpoints(store, artifacts, marked_before)
    for digest in store.retention.removable_optimizers(marked_before):
        try:
            artifacts.drop_optimizer(digest)
        except OSError:
            logger.warning("Can't delete the optimizer state of checkpoint %s yet", digest, exc_info=True)
        else:
            store.retention.optimizer_removed(digest)
    store.retention.forget_deleted_models()


def remove_unused_checkpoints(store: Store, artifacts: Artifacts, retired_before: datetime | None = None) -> None:
    """Delete the files of deleted versions that nothing needs any more. A failure is retried at the next call.

    Versions that retention deleted are left alone, unless it did so before the given time.
    """
    for digest in store.garbage.unused_digests(retired_before):
        try:
            artifacts.delete_checkpoint(digest)
        except OSError:
            logger.warning("Can't delete the files of checkpoint %s yet", digest, exc_info=True)
        else:
            store.garbage.forget_digest(digest)
