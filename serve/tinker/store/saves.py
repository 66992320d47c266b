"""What a save adds to the store in the transaction of its answer: a version or a checkpoint, a sampler, the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import null, select
from sqlalchemy.orm import Session

from tandem.cluster.calls.call import RunCall, SavedState, SaveRefusedError
from tandem.serve.store.policies.lineage import DISAGREES, RUN
from tandem.serve.store.tables.tinker import (
    ANCHOR,
    EXTERNAL_WEIGHTS,
    SAMPLER_WEIGHTS,
    UNNAMED,
    WEIGHTS,
    RunCheckpointRow,
    RunRow,
    SamplerRow,
)
from tandem.serve.store.tables.training import ModelRow, VersionRow
from tandem.serve.tinker.store.paths import sampler_id
from tandem.serve.tinker.store.runs import OPTIMIZER_KIND


def save_options(
    name: str | None,
    ttl_s: int | None = None,
    user_metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    sampler_seq: int | None = None,
    is_export: bool = False,
) -> dict[str, Any]:
    """Return the options of a save. `sampler_seq`: instead of a name, the number of the sampler that it makes.

    `is_export`: of save_weights, that the checkpoint is for download.
    """
    return {
        "name": name,
        "ttl_s": ttl_s,
        "user_metadata": None if user_metadata is None else dict(user_metadata),
        "overwrite": overwrite,
        "sampler_seq": sampler_seq,
        "is_export": is_export,
    }


def check_save(session: Session, run: RunRow, call: RunCall, now: datetime) -> None:
    """Raise SaveRefusedError if the checkpoint of a save couldn't be recorded now."""
    kind, name = _named(call)
    if name is not None:
        existing = _of_name(session, run, kind, name)
        if existing is not None:
            _check_replaceable(session, existing, call, now)
    if (seq := call.options.get("sampler_seq")) is not None:
        _check_number(session, run, seq)


def add_weights(session: Session, run: RunRow, call: RunCall, saved: SavedState, now: datetime) -> bytes:
    """Add the checkpoint of save_weights, and return the result. Raises SaveRefusedError if its name is taken."""
    kind, name = _named(call)
    assert name is not None, "only versions may have none"
    _make_room(session, run, kind, name, call, now)
    row = _checkpoint(run, kind, name, call, saved, now)
    row.parent = run.parent
    session.add(row)
    if kind == WEIGHTS:
        return json.dumps({"path": row.path, "type": "save_weights"}).encode()
    return json.dumps({"path": row.path, "size_bytes": saved.num_bytes, "type": "save_weights_external"}).encode()


def add_version(
    session: Session, run: RunRow, model: ModelRow, call: RunCall, saved: SavedState, now: datetime
) -> bytes:
    """Add the version of save_for_sampler, and return the call's result. Both rows are locked.

    Raises SaveRefusedError if the checkpoint's name or the sampler's number is taken.
    """
    seq, (_, name) = call.options.get("sampler_seq"), _named(call)
    if name is not None:
        _make_room(session, run, SAMPLER_WEIGHTS, name, call, now)
    if seq is not None:
        _check_number(session, run, seq)
    step = model.next_step
    origin = {"kind": RUN, "run": run.id, "seq": call.seq, "name": name, "parent": run.parent}
    if saved.warning is not None:
        origin[DISAGREES] = saved.warning
    session.add(
        VersionRow(
            model_id=model.id,
            step=step,
            digest=saved.digest,
            metrics={},
            created_at=now,
            optimizer_kind=OPTIMIZER_KIND if saved.has_optimizer else null(),
            origin=origin,
        )
    )
    model.next_step = step + 1
    run.parent = {"model_id": model.id, "step": step}
    row = _checkpoint(run, UNNAMED if name is None else SAMPLER_WEIGHTS, name or f"step{step}", call, saved, now)
    row.step = step
    if name is not None or row.expires_at is not None:  # of other versions, the row of the version says everything
        session.add(row)
    result = {"type": "save_weights_for_sampler"}
    if name is not None:
        result["path"] = row.path
    if seq is not None:
        sampler = SamplerRow(
            id=sampler_id(run.session_id, seq),
            session_id=run.session_id,
            seq=seq,
            entity=run.entity,
            key_id=run.key_id,
            base_model=run.base_model,
            path=None if name is None else row.path,
            model_id=model.id,
            step=step,
            digest=saved.digest,
            created_at=now,
        )
        session.add(sampler)
        result["sampling_session_id"] = sampler.id
    return json.dumps(result).encode()


def add_anchor(session: Session, run: RunRow, seq: int, digest: str, has_optimizer: bool, now: datetime) -> None:
    """Add the row of a checkpoint that only the run knows, so that its files are deleted once it is replaced."""
    session.add(
        RunCheckpointRow(
            run_id=run.id,
            model_id=run.model_id,
            entity=run.entity,
            kind=ANCHOR,
            name=f"{seq}-{digest[:12]}",
            seq=seq,
            digest=digest,
            has_optimizer=has_optimizer,
            num_bytes=0,
            public=False,
            created_at=now,
        )
    )


def _checkpoint(run: RunRow, kind: str, name: str, call: RunCall, saved: SavedState, now: datetime) -> RunCheckpointRow:
    ttl_s = call.options.get("ttl_s")
    return RunCheckpointRow(
        run_id=run.id,
        model_id=run.model_id,
        entity=run.entity,
        kind=kind,
        name=name,
        seq=call.seq,
        digest=saved.digest,
        has_optimizer=saved.has_optimizer,
        num_bytes=saved.num_bytes,
        user_metadata=call.options.get("user_metadata"),
        public=False,
        created_at=now,
        expires_at=None if ttl_s is None else now + timedelta(seconds=ttl_s),
    )


def _named(call: RunCall) -> tuple[str, str | None]:
    """Return kind and name of the checkpoint of a save. A version with a sampler of its own needs no name."""
    name = call.options.get("name")
    if call.kind == "save_for_sampler":
        is_unnamed = name is None and call.options.get("sampler_seq") is not None
        return SAMPLER_WEIGHTS, None if is_unnamed else name or f"{call.seq:06d}"
    return EXTERNAL_WEIGHTS if call.options.get("is_export") else WEIGHTS, name or f"{call.seq:06d}"


def _make_room(session: Session, run: RunRow, kind: str, name: str, call: RunCall, now: datetime) -> None:
    """Delete an expired checkpoint of this name, and with `overwrite` any. Raises SaveRefusedError for another."""
    existing = _of_name(session, run, kind, name, for_update=True)
    if existing is None:
        return
    version = _check_replaceable(session, existing, call, now)
    existing.deleted_at = now
    if version is not None and version.kept_at is None:
        version.deleted_at = version.deleted_at or now
    session.flush()


def _of_name(session: Session, run: RunRow, kind: str, name: str, for_update: bool = False) -> RunCheckpointRow | None:
    row = RunCheckpointRow
    live = select(row).where(row.run_id == run.id, row.kind == kind, row.name == name, row.deleted_at.is_(None))
    return session.scalar(live.with_for_update() if for_update else live)


def _check_replaceable(session: Session, existing: RunCheckpointRow, call: RunCall, now: datetime) -> VersionRow | None:
    """Return the version of a checkpoint whose name a save takes, if it has one. Raises SaveRefusedError."""
    version = None if existing.step is None else session.get(VersionRow, (existing.model_id, existing.step))
    is_there = (existing.expires_at is None or existing.expires_at > now) and (
        existing.step is None or (version is not None and version.deleted_at is None)
    )
    can_overwrite = call.kind == "save_weights"
    if is_there and not (can_overwrite and call.options.get("overwrite")):
        more = ", send overwrite" if existing.kind == WEIGHTS else ""
        raise SaveRefusedError(f"{existing.path} exists already. Choose another name{more}, or delete it first.")
    return version


def _check_number(session: Session, run: RunRow, seq: int) -> None:
    taken = select(SamplerRow.id).where(SamplerRow.session_id == run.session_id, SamplerRow.seq == seq)
    if existing := session.scalar(taken):
        raise SaveRefusedError(
            f"Sampling session {existing} exists already. Send a new sampling_session_seq_id with the next call."
        )
