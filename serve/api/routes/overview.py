"""GET /v1/preview/overview: all models with their state, as the page shows them first."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query

from tandem.serve.api.auth import TrainCaller
from tandem.serve.api.services import ServicesDep
from tandem.serve.api.wire.overview import Activity, LastError, ModelOverview
from tandem.serve.api.wire.paging import Limit, Order, Page
from tandem.serve.store.overview import ModelState, Recent
from tandem.serve.store.tables.training import ModelRow

router = APIRouter(prefix="/preview/overview", tags=["models"])


@router.get("")
def list_model_overviews(
    caller: TrainCaller,
    services: ServicesDep,
    after: UUID | None = None,
    limit: Limit = 50,
    order: Order = "desc",
    search: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
) -> Page[ModelOverview]:
    """List the entity's models with the rewards of their newest versions, what they wait for, and their last error.

    By time of registration, the newest first. `search`: those whose project/name contains this text, in any case.
    """
    rows = services.store.models.page(
        caller.entity,
        limit + 1,
        after=str(after) if after else None,
        newest_first=order == "desc",
        containing=search,
    )
    states = services.store.overview.states([row.id for row in rows[:limit]])
    shown = [_view(row, states.get(row.id, ModelState())) for row in rows]
    return Page.of(shown, limit)


def _view(row: ModelRow, state: ModelState) -> ModelOverview:
    newest = state.recent[-1] if state.recent else None
    ended = state.last_ended
    failed = ended is not None and ended.state == "failed"
    metric = _metric(state.recent)
    activity: Activity = "training" if state.num_running else "queued" if state.num_queued else "idle"
    return ModelOverview(
        id=row.id,
        entity=row.entity,
        project=row.project,
        name=row.name,
        base_model=row.base_model,
        created_at=row.created_at,
        step=newest.step if newest else 0,
        version_created_at=newest.created_at if newest else None,
        activity=activity,
        num_queued=state.num_queued,
        metric=metric,
        recent=[(version.step, version.loss if metric == "sft/loss" else version.reward) for version in state.recent],
        last_error=LastError(job_id=ended.id, message=ended.error or "The job failed.", ended_at=ended.ended_at)
        if ended and failed
        else None,
    )


def _metric(recent: list[Recent]) -> Literal["reward", "sft/loss"] | None:
    if any(version.reward is not None for version in recent):
        return "reward"
    return "sft/loss" if any(version.loss is not None for version in recent) else None
