"""Routes of a model's versions and their checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi import Path as PathParameter
from starlette.concurrency import run_in_threadpool

from tandem.serve.api.auth import InferCaller, TrainCaller
from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.api.connection import while_connected
from tandem.serve.api.services import ServicesDep
from tandem.serve.api.wire.paging import Limit, Order, Page, cursor_number
from tandem.serve.api.wire.requests import MAX_STEP, DeleteCheckpoints
from tandem.serve.api.wire.responses import Checkpoint, CheckpointsDeleted, Version
from tandem.serve.api.wire.views import checkpoint_view, version_view
from tandem.serve.jobs.sweeping import remove_unused_checkpoints
from tandem.serve.store.tables.training import VersionRow

RECHECK_S = 1.0
"""How often a waiting request looks itself, which also shows that its model was deleted."""
MAX_VERSION_WAIT_S = 60
KeptStep = Annotated[int, PathParameter(ge=1, le=MAX_STEP)]
router = APIRouter(prefix="/preview/models/{model_id}", tags=["models"])


@router.get("/checkpoints")
def list_checkpoints(
    model_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    include_retired: bool = False,
) -> Page[Checkpoint]:
    """List the model's versions by step. Version 0, the untrained policy, is never listed.

    With `include_retired`, also list those that retention deleted, whose `retired_at` is set.
    """
    step = None if after is None else cursor_number(after, str(model_id))
    rows = services.store.versions.page(str(model_id), caller.entity, limit + 1, step, order == "desc", include_retired)
    return Page.of([checkpoint_view(row) for row in rows], limit)


@router.get("/versions")
async def wait_for_versions(
    request: Request,
    model_id: UUID,
    caller: InferCaller,
    services: ServicesDep,
    after: Annotated[int, Query(ge=0, le=MAX_STEP)] = 0,
    wait: Annotated[float, Query(ge=0, le=MAX_VERSION_WAIT_S)] = 0,
    limit: Limit = 20,
) -> Page[Version]:
    """List the model's versions newer than step `after`. If there is none yet, wait for one up to `wait` seconds.

    An empty list means that none appeared in that time; repeat the request with the same `after`.
    """

    async def newer() -> Sequence[VersionRow]:
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            rows = await run_in_threadpool(services.store.versions.page, str(model_id), caller.entity, limit + 1, after)
            remaining = deadline - asyncio.get_running_loop().time()
            if rows or remaining <= 0:
                return rows
            await services.version_watch.wait(str(model_id), after, min(RECHECK_S, remaining))

    return Page.of([version_view(row) for row in await while_connected(request, newer())], limit)


@router.put("/checkpoints/{step}/keep")
def keep_checkpoint(model_id: UUID, step: KeptStep, caller: TrainCaller, services: ServicesDep) -> Checkpoint:
    """Keep a version: neither retention nor a request deletes it, or its optimizer state, until it is released.

    Version 0 needs no keeping, because it is never deleted.
    """
    return checkpoint_view(services.store.versions.keep(str(model_id), caller.entity, step, True))


@router.delete("/checkpoints/{step}/keep")
def release_checkpoint(model_id: UUID, step: KeptStep, caller: TrainCaller, services: ServicesDep) -> Checkpoint:
    """Release a version that was kept. The next sweep of retention may delete it."""
    return checkpoint_view(services.store.versions.keep(str(model_id), caller.entity, step, False))


@router.delete("/checkpoints", **documented(DeleteCheckpoints))
def delete_checkpoints(
    model_id: UUID,
    caller: TrainCaller,
    body: Annotated[Received[DeleteCheckpoints], Depends(json_body(DeleteCheckpoints))],
    services: ServicesDep,
) -> CheckpointsDeleted:
    """Delete versions permanently. Completions from them return 404; their steps are never used again.

    If one of them is kept, nothing is deleted: 409 with the code version_kept.
    """
    wanted = dict.fromkeys(body.value.steps)
    deleted = services.store.versions.delete(str(model_id), caller.entity, wanted)
    remove_unused_checkpoints(services.store, services.artifacts)
    return CheckpointsDeleted(
        deleted_count=len(deleted), not_found_steps=[step for step in wanted if step not in deleted]
    )
