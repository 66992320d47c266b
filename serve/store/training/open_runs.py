"""Runs of the Tinker API beside the training jobs of their models: a model is trained by one of them at a time."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from tandem.serve.errors import ConflictError
from tandem.serve.store.tables.tinker import CallRow, RunCheckpointRow, RunRow, is_unanswered
from tandem.serve.store.tables.training import ModelRow


def check_no_open_run(session: Session, model: ModelRow) -> None:
    """Raise ConflictError if a client of the Tinker API trains the model."""
    open_run = select(RunRow.id).where(RunRow.model_id == model.id, RunRow.unloaded_at.is_(None))
    if run_id := session.scalar(open_run):
        raise ConflictError(
            f"Model {model.path} is trained by run {run_id} of the Tinker API, whose state a training job or an import "
            "would contradict. Unload it first (POST /api/v1/unload_model with this model_id), or fork the model and "
            "train the fork.",
            "model_in_training",
            "model_id",
        )


def unload(session: Session, run: RunRow, now: datetime, why: str) -> list[str]:
    """End a run whose row this transaction has locked: its claim is void, and the calls that wait fail.

    Return the keys of bodies that nothing needs any more. A repeat changes nothing.
    """
    if run.unloaded_at is not None:
        return []
    run.unloaded_at, run.owner, run.waiting_for = now, None, None
    waiting = update(CallRow).where(CallRow.run_id == run.id, is_unanswered())
    session.execute(waiting.values(answered_at=now, error=f"{why} This call was not run.", category="user"))
    forget_anchors(session, run.id, now)
    return forget_bodies(session, run.id, None)


def unload_run_of(session: Session, model: ModelRow, now: datetime) -> list[str]:
    """Unload the run of a model that is deleted, and delete its checkpoints. Return what `unload` does."""
    run = session.scalar(select(RunRow).where(RunRow.model_id == model.id).with_for_update())
    if run is None:
        return []
    keys = unload(session, run, now, f"Model {model.path} was deleted.")
    live = RunCheckpointRow.run_id == run.id, RunCheckpointRow.deleted_at.is_(None)
    session.execute(update(RunCheckpointRow).where(*live).values(deleted_at=now))
    return keys


def forget_anchors(session: Session, run_id: str, now: datetime, but: str | None = None) -> None:
    """Mark the anchors of a run as deleted, except the checkpoint `but`."""
    live = RunCheckpointRow.run_id == run_id, RunCheckpointRow.kind == "anchor", RunCheckpointRow.deleted_at.is_(None)
    query = update(RunCheckpointRow).where(*live)
    session.execute((query if but is None else query.where(RunCheckpointRow.digest != but)).values(deleted_at=now))


def forget_bodies(session: Session, run_id: str, last_seq: int | None) -> list[str]:
    """Forget the bodies of a run's calls that have ended, up to the call `last_seq` or all. Return their keys."""
    ended = [CallRow.run_id == run_id, CallRow.answered_at.is_not(None), CallRow.body_key.is_not(None)]
    if last_seq is not None:
        ended.append(CallRow.seq <= last_seq)
    keys = [key for key in session.scalars(select(CallRow.body_key).where(*ended)) if key is not None]
    if keys:
        session.execute(update(CallRow).where(*ended).values(body_key=None))
    return keys
