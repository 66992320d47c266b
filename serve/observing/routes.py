"""GET /metrics for Prometheus, and the live state of engines and learners."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Response
from starlette.concurrency import run_in_threadpool

from tandem.serve.api.auth import AdminCaller, TrainCaller, include_with_key
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.paging import Limit, Page, unknown_cursor
from tandem.serve.errors import UnavailableError
from tandem.serve.observing import wire
from tandem.serve.observing.cluster_state import ClusterView
from tandem.serve.observing.exposition import CONTENT_TYPE, merged
from tandem.serve.observing.http_metrics import HttpMetrics
from tandem.serve.observing.views import digests_of, engines_view, learners_view

router = APIRouter(tags=["observing"])
After = Annotated[str | None, Query(max_length=200)]


def add_routes(app: FastAPI) -> None:
    include_with_key(app, router, prefix="")
    app.add_middleware(HttpMetrics)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(caller: AdminCaller, services: ServicesDep) -> Response:
    """Return the service's metrics from all nodes in Prometheus' text format. They name no tenant, model or job."""
    pages = await _cluster(services).metric_pages()
    if not any(page is not None for page in pages.values()):
        raise UnavailableError(
            "No node's Ray metrics agent answers, so there are no metrics. Ray starts the agent on each node if "
            "ray[default] is installed there, unless RAY_enable_metrics_collection=0.",
            "metrics_unavailable",
        )
    return Response(await run_in_threadpool(merged, pages), media_type=CONTENT_TYPE)


@router.get("/v1/preview/engines")
async def list_engines(
    caller: TrainCaller, services: ServicesDep, after: After = None, limit: Limit = 20
) -> Page[wire.Engines]:
    """List the engines of each base model: replicas, load, restarts, and which of the caller's versions they hold.

    A replica that doesn't answer is listed as such. Versions of other entities are counted, not named.
    """
    names = _page(services, after, limit)
    found = await _cluster(services).engines()
    digests = [digest for name in names if name in found for digest in digests_of(found[name])]
    own = await run_in_threadpool(services.store.live_state.own_versions, digests, caller.entity)
    config, sees_errors = services.config, caller.role == "admin"
    listed = [engines_view(config.base_model(name), found[name], own, sees_errors) for name in names if name in found]
    return Page.of(listed, limit)


@router.get("/v1/preview/learners")
async def list_learners(
    caller: TrainCaller, services: ServicesDep, after: After = None, limit: Limit = 20
) -> Page[wire.Learners]:
    """List the learners of each base model: state, speed, memory, the caller's running jobs, and publish latency."""
    names = _page(services, after, limit)
    found = await _cluster(services).learners()
    running = [
        id for name in names for id in (found[name]["status"]["running_jobs"] if found and name in found else ())
    ]
    own = await run_in_threadpool(services.store.live_state.own_jobs, running, caller.entity)
    config, sees_errors = services.config, caller.role == "admin"
    listed = [
        learners_view(config.base_model(name), found.get(name) if found else None, own, sees_errors) for name in names
    ]
    return Page.of(listed, limit)


def _cluster(services: Services) -> ClusterView:
    if services.cluster is None:
        raise UnavailableError("This process doesn't run on Ray, so it sees no engines.", "no_cluster")
    return services.cluster


def _page(services: Services, after: str | None, limit: int) -> list[str]:
    """Return the names of `limit` + 1 base models, in the order of the configuration."""
    names = [base.name for base in services.config.base_models]
    if after is None:
        return names[: limit + 1]
    if after not in names:
        raise unknown_cursor()
    start = names.index(after) + 1
    return names[start : start + limit + 1]
