"""Requests are counted by route, status and who answered; no label comes from the client."""

import asyncio
from dataclasses import replace

import pytest
from recorded_metrics import recorded

from tandem.cluster.config import LimitsConfig
from tandem.serve.observing.http_metrics import HttpMetrics

COUNT, SECONDS = "tandem_http_requests_total", "tandem_http_request_seconds"


def test_a_request_is_counted_under_its_routes_template(http, model):
    with recorded() as metrics:
        http.get(f"/v1/preview/models/{model['id']}")
    labels = {"route": "/v1/preview/models/{model_id}", "method": "GET", "answered_by": "api"}
    assert metrics.of(COUNT, **labels, status="200") == [1.0]
    assert len(metrics.of(SECONDS, **labels)) == 1


def test_invented_paths_and_methods_share_a_label(http):
    with recorded() as metrics:
        http.get("/v1/tdm_secret")
        http.request("BREW", "/coffee/1")
    assert metrics.total(COUNT, route="unmatched") == 2
    assert metrics.total(COUNT, method="other") == 1


def test_refusals_are_counted_by_status(http, model, app, services):
    small = LimitsConfig(max_request_bytes=10)
    app.state.services = replace(services, config=services.config.model_copy(update={"limits": small}))
    with recorded() as metrics:
        http.post("/v1/preview/models", json={"name": "x" * 100})
        http.get("/v1/preview/models", headers={"Authorization": "Bearer tdm_wrong"})
    assert metrics.total(COUNT, route="/v1/preview/models", status="413") == 1
    assert metrics.total(COUNT, route="/v1/preview/models", status="401") == 1


@pytest.mark.parametrize(("fails", "status"), [(False, "499"), (True, "500")])
def test_a_request_without_an_answer(fails, status):
    async def app(scope, receive, send):
        if fails:
            raise RuntimeError("a fault")

    async def ask():
        await HttpMetrics(app)({"type": "http", "method": "GET", "path": "/x"}, None, None)

    with recorded() as metrics:
        if fails:
            with pytest.raises(RuntimeError):
                asyncio.run(ask())
        else:
            asyncio.run(ask())
    assert metrics.of(COUNT, status=status) == [1.0]
