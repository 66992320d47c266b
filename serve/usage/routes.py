"""Routes of the ledger: the bill, where the time of a job went, and when learner and rollouts waited."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from tandem.serve.api.auth import TrainCaller
from tandem.serve.api.services import ServicesDep
from tandem.serve.api.wire.paging import cursor_number, numbered_cursor, unknown_cursor
from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.store.ledger.sums import Asked, GroupBy
from tandem.serve.usage.activity import MAX_BINS, Span, activity_bins
from tandem.serve.usage.csv_lines import csv_lines
from tandem.serve.usage.report import Line, Report, job_costs, report
from tandem.serve.usage.timeline import timeline
from tandem.serve.usage.totals import phase_totals
from tandem.serve.usage.wire import Activity, JobPhase, JobPhases, UsageItem, UsagePage, amounts_view

router = APIRouter(prefix="/preview", tags=["usage"])
MAX_GROUPS = 3
MAX_ACTIVITY = timedelta(days=31)
From = Annotated[datetime | None, Query(alias="from")]


@router.get("/usage", responses={200: {"content": {"text/csv": {}}}})
def get_usage(
    caller: TrainCaller,
    services: ServicesDep,
    begin: From = None,
    end: Annotated[datetime | None, Query(alias="to")] = None,
    group_by: Annotated[list[GroupBy] | None, Query(max_length=MAX_GROUPS)] = None,
    model_id: UUID | None = None,
    job_id: Annotated[str | None, Query(max_length=64)] = None,
    key_id: UUID | None = None,
    base_model: Annotated[str | None, Query(max_length=128)] = None,
    format: Literal["json", "csv"] | None = None,
    accept: Annotated[str | None, Header()] = None,
    after: Annotated[str | None, Query(max_length=1000)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> UsagePage:
    """Return what the entity has used from `from` to `to`, by default in the last 7 days, and what that costs.

    Times count in whole hours, and without a zone they are in UTC; days before the last two months count whole. Repeat
    `group_by` for groups of several things. With `format=csv`, or `Accept: text/csv`, the answer has all groups.
    """
    groups = tuple(dict.fromkeys(group_by or ()))
    begin, end = _times(begin, end, services.store.database.now(), timedelta(days=7))
    asked = Asked(
        caller.entity,
        _hour(begin),
        end,
        groups,
        str(model_id) if model_id else None,
        job_id,
        str(key_id) if key_id else None,
        base_model,
    )
    found = report(services.store, asked)
    if format == "csv" or (format is None and accept is not None and accept.startswith("text/csv")):
        items = (_item(line, found) for line in found.lines)
        name = f"usage-{asked.begin:%Y-%m-%d}-{asked.end:%Y-%m-%d}.csv"
        return StreamingResponse(  # type: ignore[return-value]  # FastAPI sends a response as it is
            csv_lines(items, groups, sorted(found.total.costs)),
            media_type="text/csv; charset=utf-8",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )
    lines = found.lines
    if after is not None:
        place = next((index for index, line in enumerate(lines) if line.id == after), None)
        if place is None:
            raise unknown_cursor()
        lines = lines[place + 1 :]
    data = [_item(line, found) for line in lines[:limit]]
    return UsagePage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(lines) > limit,
        begin=asked.begin,
        end=asked.end,
        total=amounts_view(found.total.amounts, found.total.money),
    )


@router.get("/training-jobs/{training_job_id}/phases")
def get_training_job_phases(
    training_job_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> JobPhases:
    """Return where the time of a job went, over all its attempts, from its acceptance to its end or now."""
    store = services.store
    job = store.jobs.get(str(training_job_id), caller.entity)
    now = store.database.now()
    stretches = timeline(job, store.phases.of_job(job.id), now)
    whole = Asked(caller.entity, job.created_at - timedelta(days=1), now + timedelta(days=1), ("phase",), job_id=job.id)
    sums, _ = store.usage_sums.sums(whole)
    first = 0 if after is None else cursor_number(after, job.id)
    data = [
        JobPhase(id=numbered_cursor(job.id, number), **vars(stretch))
        for number, stretch in enumerate(stretches[first : first + limit], first + 1)
    ]
    totals = phase_totals(stretches, sums)
    return JobPhases(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(stretches) > first + limit,
        job_id=job.id,
        state=job.state,  # type: ignore[arg-type]  # the store has these words
        accepted_at=job.created_at,
        ended_at=job.ended_at,
        seconds=((job.ended_at or now) - job.created_at).total_seconds(),
        idle_seconds=sum(total.seconds for total in totals if total.name == "idle"),
        totals=totals,
        costs=job_costs(store, sums),
    )


@router.get("/activity")
def get_activity(
    caller: TrainCaller,
    services: ServicesDep,
    model_id: UUID | None = None,
    base_model: Annotated[str | None, Query(max_length=128)] = None,
    begin: From = None,
    end: Annotated[datetime | None, Query(alias="to")] = None,
    bins: Annotated[int, Query(ge=1, le=MAX_BINS)] = 60,
) -> Activity:
    """Return when the learner of a model worked, and when it waited for rollouts or they for it; by default of the
    last hour.

    With `base_model` instead of `model_id`, of all the entity's models on it; with neither, of all its models. Up to
    31 days are kept. Running work is known up to some seconds ago.
    """
    now = services.store.database.now()
    begin, end = _times(begin, end, now, timedelta(hours=1))
    if end - begin > MAX_ACTIVITY:
        raise InvalidRequestError([Problem(("query", "from"), "lies more than 31 days before `to`")])
    if model_id is not None:
        models = [services.store.models.get(str(model_id), caller.entity).id]
    else:
        models = services.store.activity.models(caller.entity, base_model)
    found = services.store.activity.between(models, begin, end, now)
    total, parts = activity_bins(Span(begin, end), bins, found)
    return Activity(begin=begin, end=end, models=models, total=total, bins=parts)


def _times(
    begin: datetime | None, end: datetime | None, now: datetime, default: timedelta
) -> tuple[datetime, datetime]:
    """Return both times in UTC. Raises InvalidRequestError."""
    end = _utc(end) if end else now
    begin = _utc(begin) if begin else end - default
    if begin >= end:
        raise InvalidRequestError([Problem(("query", "from"), "must be earlier than `to`")])
    return begin, end


def _utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except OverflowError:  # the first or last day of the calendar, in another zone
        raise InvalidRequestError([Problem(("query", "from"), "is beyond the calendar")]) from None


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


def _item(line: Line, found: Report) -> UsageItem:
    group, names = dict(line.group), found.names
    if (model := group.get("model")) is not None:
        group["model_name"] = names.models.get(model, model)
    if (key := group.get("key")) is not None:
        group["key_name"] = names.keys.get(key, "")
    return UsageItem(id=line.id, **group, **amounts_view(line.amounts, line.money).model_dump())
