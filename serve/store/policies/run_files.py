"""The checkpoints that runs of the Tinker API need: what keeps the files of a digest, and what keeps a version."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import InstrumentedAttribute, aliased

from tandem.serve.store.tables.tinker import (
    ANCHOR,
    SAMPLER_WEIGHTS,
    WEIGHTS,
    CallRow,
    RunCheckpointRow,
    RunRow,
    SamplerRow,
    SessionRow,
    is_unanswered,
)
from tandem.serve.store.tables.training import VersionRow

SILENT = timedelta(hours=1)
"""A client that wasn't heard of for so long doesn't sample any more. Its runs stay."""


def needed_by_runs(digest: InstrumentedAttribute[str], now: datetime) -> ColumnElement[bool]:
    """True for a checkpoint whose files a run, a client or a sampler may still read.

    A version for sampling keeps its files by itself.
    """
    return or_(_is_training_state(digest), _is_sampled(digest, now), _may_be_saved_again(digest))


def needed_optimizer(digest: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """True for a checkpoint whose optimizer state a run may still read."""
    return _is_training_state(digest)


def keeps_version(now: datetime) -> ColumnElement[bool]:
    """True for a version that retention leaves alone: a client has named it, or samples it."""
    row = RunCheckpointRow
    is_named = select(row.number).where(
        row.model_id == VersionRow.model_id,
        row.step == VersionRow.step,
        row.kind == SAMPLER_WEIGHTS,
        row.deleted_at.is_(None),
    )
    return is_named.exists() | _is_sampled(VersionRow.digest, now)


def _is_training_state(digest: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """True for a saved state, the anchor of a run, and what a call that waits will load."""
    saved, run, call, of_call = aliased(RunCheckpointRow), aliased(RunRow), aliased(CallRow), aliased(RunRow)
    return or_(
        select(saved.number)
        .where(saved.digest == digest, saved.kind.in_((WEIGHTS, ANCHOR)), saved.deleted_at.is_(None))
        .exists(),
        select(run.number).where(run.anchor_digest == digest, run.unloaded_at.is_(None)).exists(),
        select(call.seq)
        .join(of_call, of_call.id == call.run_id)
        .where(call.digest == digest, is_unanswered(call), of_call.unloaded_at.is_(None))
        .exists(),
    )


def _is_sampled(digest: InstrumentedAttribute[str], now: datetime) -> ColumnElement[bool]:
    living = (
        select(SamplerRow.number)
        .join(SessionRow, SessionRow.id == SamplerRow.session_id)
        .where(SessionRow.finished_at.is_(None), SessionRow.heartbeat_at > now - SILENT)
    )
    return living.where(SamplerRow.digest == digest).exists()


def _may_be_saved_again(digest: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """True if the run that made the checkpoint has a save in its queue.

    That may make the same checkpoint. It would find the files, keep them as they are, and then lose them.
    """
    call, run = aliased(CallRow), aliased(RunRow)
    saved, version = aliased(RunCheckpointRow), aliased(VersionRow)
    saves = (
        select(call.seq)
        .join(run, run.id == call.run_id)
        .where(is_unanswered(call), call.kind.in_(("save_weights", "save_for_sampler")), run.unloaded_at.is_(None))
    )
    return or_(
        saves.join(saved, saved.run_id == run.id).where(saved.digest == digest).exists(),
        saves.join(version, version.model_id == run.model_id).where(version.digest == digest).exists(),
    )
