"""Routes that list and find sessions, and say what belongs to one."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from fastapi import APIRouter, Depends

from tandem.serve.api.auth import InferCaller
from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.tinker.api.context import TinkerDep
from tandem.serve.tinker.api.rest.runs import Limit, Offset, Scope
from tandem.serve.tinker.api.rest.views import text_values
from tandem.serve.tinker.store.session_search import FoundSession, SessionQuery, Status
from tandem.serve.tinker.wire.rest import (
    Active,
    ClientFinished,
    Cursor,
    FoundSessions,
    NextCursor,
    Reason,
    SearchSessions,
    SessionDetails,
    Sessions,
    SessionSummary,
)

router = APIRouter(tags=["tinker"])


@router.get("/sessions")
def list_sessions(
    caller: InferCaller, tinker: TinkerDep, limit: Limit = 20, offset: Offset = 0, access_scope: Scope = "owned"
) -> Sessions:
    """List the ids of the entity's sessions, the newest first."""
    rows, total = tinker.store.sessions.page(caller.entity, limit, offset)
    return Sessions(sessions=[row.id for row in rows], cursor=Cursor(offset=offset, limit=limit, total_count=total))


@router.get("/sessions/{session_id}")
def get_session(
    session_id: str, caller: InferCaller, tinker: TinkerDep, access_scope: Scope = "owned"
) -> SessionDetails:
    """Return the runs and samplers of a session."""
    row = tinker.store.sessions.get(caller.entity, session_id)
    return SessionDetails(
        training_run_ids=tinker.store.runs.of_session(row.id),
        sampler_ids=tinker.store.samplers.of_session(row.id),
        user_metadata=text_values(row.user_metadata),
        display_name=row.display_name,
    )


@router.post("/sessions/search", **documented(SearchSessions))
def search_sessions(
    caller: InferCaller,
    body: Annotated[Received[SearchSessions], Depends(json_body(SearchSessions))],
    tinker: TinkerDep,
) -> FoundSessions:
    """Find sessions of the entity by id, name, metadata, project or status, the newest first."""
    wanted = body.value
    owners = wanted.owner.owner_urns
    if wanted.owner.type == "user" and caller.entity not in (owners or []):
        return FoundSessions(sessions=[])
    query = SessionQuery(
        session_id=wanted.session_id,
        display_name=wanted.display_name,
        projects=wanted.project_ids,
        user_metadata=wanted.user_metadata,
        statuses=None if wanted.statuses is None else [Status(one.type, one.reasons) for one in wanted.statuses],
        after=None if wanted.cursor is None else wanted.cursor.last_session_id,
    )
    found = tinker.session_search.find(caller.entity, query, wanted.limit + 1)
    page = found[: wanted.limit]
    last = page[-1].row if len(found) > wanted.limit else None
    cursor = last and NextCursor(last_created_at=last.created_at, last_session_id=last.id)
    return FoundSessions(sessions=[_summary(one) for one in page], next_cursor=cursor)


def _summary(found: FoundSession) -> SessionSummary:
    row = found.row
    status: Active | ClientFinished | None = Active() if found.is_active else None
    if row.finished_at is not None:
        reason = cast("Literal['success', 'errored', 'interrupted']", row.finish_reason)
        status = ClientFinished(reason=Reason(type=reason), detail=row.finish_detail)
    return SessionSummary(
        session_id=row.id,
        created_at=row.created_at,
        owner=row.entity,
        project_id=found.project,
        status=status,
        checkpoints_count=found.num_checkpoints,
        display_name=row.display_name,
        user_metadata=text_values(row.user_metadata),
        checkpoint_storage_bytes=found.checkpoint_bytes,
    )
