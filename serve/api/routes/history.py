"""Routes of a model's curves: the metrics of its versions, and of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from tandem.serve.api.auth import TrainCaller
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.history import Evaluation, HistoryPoint, ModelHistory
from tandem.serve.api.wire.paging import Order, Page, cursor_number, numbered_cursor
from tandem.serve.api.wire.requests import MAX_STEP
from tandem.serve.curves.metrics import CHARTED, alarm_limits, metrics_of, names_in
from tandem.serve.curves.thinning import buckets, spread
from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.names import quoted
from tandem.serve.store.curves import VersionPoint
from tandem.serve.store.tables.training import LogRow

MAX_METRICS = 64
MAX_NAME = 128
MAX_NAMED = 20  # names in the sentence about an unknown one
TRAINING_SPLITS = ("train", "sft")
STEP_NAMES = ("training_step", "step")
"""Metrics of a log entry that say its version."""
router = APIRouter(prefix="/preview/models/{model_id}", tags=["models"])
MetricName = Annotated[str, Query(min_length=1, max_length=MAX_NAME)]
Step = Annotated[int, Query(ge=0, le=MAX_STEP)]


@router.get("/history")
def get_model_history(
    model_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    metric: Annotated[list[MetricName] | None, Query(max_length=MAX_METRICS)] = None,
    first_step: Step = 0,
    last_step: Step | None = None,
    points: Annotated[int | None, Query(ge=1, le=2000)] = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    order: Order = "asc",
) -> ModelHistory:
    """Return metrics of the model's versions by step, those that retention deleted too: the points of its curves.

    Without `points`, each version is a point, in pages of `limit`. With `points`, all versions of the range are put
    together in that many points at most, whose minimum and maximum show spread and outliers. `metric`, which may be
    repeated, chooses metrics; without it, those that are charted. An unknown one is refused.
    """
    store = services.store
    model = store.curves.model(str(model_id), caller.entity)
    first, last = _range(first_step, last_step, None if after is None else cursor_number(after, model.id), order)
    rows = store.curves.versions(model.id, first, last, None if points else limit + 1, order == "desc")
    metrics = {row.step: metrics_of(row) for row in rows}
    wanted = _known(metric, list(metrics.values()), services, model.id) if metric else list(CHARTED)
    grouped = list(buckets(rows, points)) if points else [[row] for row in rows]
    found = [_point(model.id, versions, metrics, wanted) for versions in grouped]
    page = Page[HistoryPoint].of(found, len(found) if points else limit)
    is_here = model.base_model in services.base_models
    return ModelHistory(
        **page.model_dump(exclude={"data"}),
        data=page.data,
        model_id=model.id,
        metrics=names_in(metrics.values()),
        limits=alarm_limits(services.config.base_model(model.base_model)) if is_here else {},
    )


def _range(first: int, last: int | None, after: int | None, order: Order) -> tuple[int, int | None]:
    """Return the range of steps that follows the step `after` in this order."""
    if after is None:
        return first, last
    if order == "asc":
        return max(first, after + 1), last
    return first, after - 1 if last is None else min(last, after - 1)


def _point(
    model_id: str, versions: Sequence[VersionPoint], metrics: dict[int, dict[str, float]], wanted: Sequence[str]
) -> HistoryPoint:
    last = max(versions, key=lambda version: version.step)
    spreads = {name: spread(metrics[version.step].get(name) for version in versions) for name in wanted}
    return HistoryPoint(
        id=numbered_cursor(model_id, last.step),
        step=last.step,
        first_step=min(version.step for version in versions),
        num_versions=len(versions),
        created_at=last.created_at,
        job_id=last.job_id,
        kind=last.kind,
        metrics={name: (of.min, of.mean, of.max) for name, of in spreads.items() if of is not None},
    )


def _known(
    wanted: Sequence[str], of_range: Sequence[dict[str, float]], services: Services, model_id: str
) -> Sequence[str]:
    """Return the wanted names. Raise InvalidRequestError for one that no version of the model has."""
    unknown = set(wanted) - set(CHARTED) - set(names_in(of_range))
    if unknown:  # versions outside of the range may have it
        names = names_in([metrics_of(row) for row in services.store.curves.versions(model_id)])
        if strange := sorted(unknown - set(names)):
            having = ", ".join((names or CHARTED)[:MAX_NAMED]) + (" and others" if len(names) > MAX_NAMED else "")
            message = f"no version of this model has a metric {quoted(strange[0])}; there are {having}"
            raise InvalidRequestError([Problem(("query", "metric"), message)], "metric_not_found")
    return wanted


@router.get("/evaluations")
def list_evaluations(
    model_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page[Evaluation]:
    """List the metrics of logged trajectories of splits that aren't trained on ("val", "eval", ...), newest first."""
    model = services.store.curves.model(str(model_id), caller.entity)
    before = None if after is None else cursor_number(after, model.id)
    rows = services.store.curves.evaluations(model.id, TRAINING_SPLITS, limit + 1, before)
    return Page.of([_evaluation(row, newest) for row, newest in rows], limit)


def _evaluation(row: LogRow, newest: int) -> Evaluation:
    named = next((int(row.metrics[name]) for name in STEP_NAMES if name in row.metrics), newest)
    id = numbered_cursor(row.model_id, row.number)
    return Evaluation(id=id, split=row.split, step=named, metrics=row.metrics, created_at=row.created_at)
