"""Routes of trajectories: find them, read one, and list the groups of a job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import StreamingResponse

from tandem.cluster.errors import ArtifactError
from tandem.serve.api.auth import TrainCaller, include_with_key
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.paging import Limit, Order, Page, unknown_cursor
from tandem.serve.api.wire.requests import MAX_STEP, Name
from tandem.serve.api.wire.views import job_view
from tandem.serve.errors import GoneError, InvalidRequestError, NotFoundError, Problem
from tandem.serve.store.tables.training import JobRow
from tandem.serve.store.uploads.trajectory_search import Filters, GroupSort, Place
from tandem.serve.trajectories.ids import TrajectoryId
from tandem.serve.trajectories.queries import find_model, number_range, read_conditions, refuse_unknown
from tandem.serve.trajectories.reading import read_part
from tandem.serve.trajectories.text_search import search
from tandem.serve.trajectories.views import group_view, removed_notes, summary_view
from tandem.serve.trajectories.wire import GroupPage, Indexing, Progress, TrajectoryPage

router = APIRouter(prefix="/preview", tags=["trajectories"])
Step = Annotated[int, Query(ge=0, le=MAX_STEP)]
Index = Annotated[int, Query(ge=0, le=MAX_STEP)]


def add_routes(app: FastAPI) -> None:
    """Add the routes under /v1."""
    include_with_key(app, router)


@router.get("/trajectories")
def list_trajectories(
    request: Request,
    caller: TrainCaller,
    services: ServicesDep,
    model: Annotated[str | None, Query(max_length=512)] = None,
    job: UUID | None = None,
    log: UUID | None = None,
    split: Name | None = None,
    step: Step | None = None,
    group: Index | None = None,
    reward_min: float | None = None,
    reward_max: float | None = None,
    errors: bool = False,
    text: Annotated[str | None, Query(min_length=1, max_length=500)] = None,
    sort: Literal["time", "reward"] = "time",
    order: Order = "desc",
    after: str | None = None,
    limit: Limit = 20,
) -> TrajectoryPage:
    """Find trajectories of training jobs and logs, also rollouts that failed.

    `model` is an id or a name, `step` the policy version that sampled a turn, `group` an index within `job` or `log`,
    `errors` leaves those with an error. More filters: `metadata.KEY=VALUE`, `metric.NAME.min` and `metric.NAME.max`.

    `text` is searched in the payloads, in order of time, upper and lower case alike: each answer is part of the search,
    with its `progress`. Sorted by reward, rollouts without one are left out.
    """
    conditions = read_conditions(request)
    if job is not None and log is not None:
        raise InvalidRequestError([Problem(("query", "log"), "is sent beside job; send one of the two")])
    if group is not None and job is None and log is None:
        raise InvalidRequestError([Problem(("query", "group"), "is an index within a job or log; send job or log too")])
    if text is not None and sort != "time":
        message = "can't be reward with text: a text is searched in order of time; leave sort out"
        raise InvalidRequestError([Problem(("query", "sort"), message)])
    source = job or log
    if source is not None:
        _check_source(services, str(source), caller.entity, "job" if job else "log")
    filters = Filters(
        entity=caller.entity,
        model_id=None if model is None else find_model(services, model, caller.entity).id,
        source_id=None if source is None else str(source),
        split=split,
        step=step,
        group=group,
        reward=number_range(reward_min, reward_max, "reward"),
        errors=errors,
        metadata=conditions.metadata,
        metrics=conditions.metrics,
    )
    place = None if after is None else _place(after)
    if text is not None:
        return _text_page(services, filters, text, place, limit, order == "desc")
    rows = services.store.trajectories
    if sort == "time":
        found = rows.by_time(filters, limit + 1, place, newest_first=order == "desc")
    else:
        found = rows.by_reward(filters, limit + 1, place, best_first=order == "desc")
    page = Page.of([summary_view(one) for one in found], limit)
    total = rows.count(filters) if after is None else None
    return TrajectoryPage(**dict(page), total=total, **_about(services, filters))


def _text_page(
    services: Services, filters: Filters, text: str, after: Place | None, limit: int, newest_first: bool
) -> TrajectoryPage:
    rows = services.store.trajectories
    found = search(rows, services.artifacts, filters, text, limit, after, newest_first)
    total = rows.count(filters)
    last = None if found.last is None else str(TrajectoryId(*found.last))
    searched = total if found.is_complete or found.last is None else rows.count_until(filters, found.last, newest_first)
    data = [summary_view(one, match) for one, match in found.matches]
    return TrajectoryPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=last,
        has_more=not found.is_complete,
        total=total,
        progress=Progress(searched=searched, of=total, unreadable=found.num_unreadable),
        **_about(services, filters),
    )


def _about(services: Services, filters: Filters) -> dict[str, object]:
    """Return what a list can't have."""
    rows, index = services.store.trajectories, services.store.trajectory_index
    pending = index.num_pending(filters.entity, filters.model_id)
    removed = rows.removed(filters.entity, filters.model_id)
    return {
        "still_indexing": Indexing(jobs=pending.get("job", 0), logs=pending.get("log", 0)),
        "notes": removed_notes(removed, rows.num_supervised(filters.entity, filters.model_id)),
    }


def _check_source(services: Services, source_id: str, entity: str, kind: str) -> None:
    """Raise NotFoundError or GoneError for a job or log that has no trajectories."""
    source = services.store.trajectories.source(source_id, entity)
    if source.kind != kind:
        names = {"job": "a training job", "log": "a log entry"}
        raise NotFoundError(f"{source_id} is {names[source.kind]}, not {names[kind]}.", "trajectory_not_found", kind)


def _place(cursor: str) -> Place:
    """Raises InvalidRequestError for a cursor that isn't a trajectory's id."""
    try:
        return TrajectoryId.parse(cursor)
    except NotFoundError:
        raise unknown_cursor() from None


@router.get("/trajectories/{trajectory_id}", dependencies=[Depends(refuse_unknown)])
def get_trajectory(trajectory_id: str, caller: TrainCaller, services: ServicesDep) -> StreamingResponse:
    """Return a trajectory as it was sent, in `trajectory`, with `group` and what the list says about it.

    One that was removed is a 410 with the reason.
    """
    place = TrajectoryId.parse(trajectory_id)
    found, group = services.store.trajectories.get(place, caller.entity)
    counts = _not_trained(services, found.job) if found.job else {}
    about = {
        **summary_view(found).model_dump(mode="json", exclude={"excerpt"}),
        "group_statistics": group_view(place.source, group, None, found.job, counts).model_dump(
            mode="json", exclude={"rewards"}
        ),
    }
    parts = read_part(services.artifacts, found.source.payload_key, found.row.start, found.row.num_bytes)
    try:
        first = next(parts)  # the payload is there
    except ArtifactError:
        raise GoneError(
            f"The payload of {place.source} isn't in the artifact store any more.",
            "trajectory_removed",
            "trajectory_id",
        ) from None

    def body() -> Iterator[bytes]:
        yield json.dumps(about).removesuffix("}").encode() + b', "trajectory": '
        yield first
        yield from parts
        yield b"}"

    return StreamingResponse(body(), media_type="application/json")


@router.get("/training-jobs/{training_job_id}/groups", dependencies=[Depends(refuse_unknown)])
def list_groups_of_job(
    training_job_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    sort: GroupSort = "worst",
    after: str | None = None,
    limit: Limit = 20,
) -> GroupPage:
    """List the trajectory groups of a job with their rewards: the worst or best mean first, or the largest spread."""
    services.store.jobs.get(str(training_job_id), caller.entity)
    return _group_page(services, str(training_job_id), caller.entity, sort, after, limit)


@router.get("/models/{model_id}/groups", dependencies=[Depends(refuse_unknown)])
def list_groups_of_version(
    model_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    step: Step | None = None,
    sort: GroupSort = "worst",
    after: str | None = None,
    limit: Limit = 20,
) -> GroupPage:
    """List the trajectory groups of the job that made version `step` of a model, by default the newest of a job."""
    services.store.models.get(str(model_id), caller.entity)
    job = services.store.trajectories.job_of_version(str(model_id), step, caller.entity)
    if job is None:
        which = "any version" if step is None else f"version {step}"
        return _no_groups(None, f"No training job made {which}, so there are no trajectory groups.")
    return _group_page(services, job.id, caller.entity, sort, after, limit)


def _group_page(
    services: Services, job_id: str, entity: str, sort: GroupSort, after: str | None, limit: int
) -> GroupPage:
    job = services.store.jobs.get(job_id, entity)
    if job.kind != "rl":
        note = "A supervised or preference job trains on the rows of a dataset, not on trajectory groups."
        return _no_groups(job_id, note)
    rows = services.store.trajectories
    source = rows.source(job_id, entity)
    found = rows.groups(source, limit + 1, None if after is None else _group_index(after, job_id), sort)
    counts = _not_trained(services, job)
    page = Page.of([group_view(job_id, one.row, one, job, counts) for one in found], limit)
    notes = [f"The trajectories can't be indexed: {source.reason}"] if source.state == "failed" else []
    return GroupPage(
        **dict(page), job_id=job_id, total=source.num_groups, still_indexing=source.state == "pending", notes=notes
    )


def _no_groups(job_id: str | None, note: str) -> GroupPage:
    return GroupPage(
        data=[], first_id=None, last_id=None, has_more=False, job_id=job_id, total=0, still_indexing=False, notes=[note]
    )


def _group_index(cursor: str, job_id: str) -> int:
    source, _, index = cursor.partition(".")
    if source != job_id or not (index.isascii() and index.isdigit() and len(index) < 10):
        raise unknown_cursor()
    return int(index)


def _not_trained(services: Services, job: JobRow) -> dict[str, int]:
    """Return a job's counts of trajectories that don't train, by reason."""
    return job_view(job, services.store.jobs.noted_events([job])[job.id]).not_trained
