"""Metrics and live state of the running service."""

import httpx
import pytest
from helpers import inference_name, post_job, register, roll_out
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

from tandem.cluster.config import TandemConfig
from tandem.cluster.metrics.catalogue import METRICS
from tandem.serve.keys import create_key
from tandem.serve.observing.exposition import NODE_UP
from tandem.serve.store.store import Store


@pytest.fixture
def admin_key(service):
    return create_key(Store(TandemConfig(home=service.home).resolved_store_url), "scraper", "default", "admin")


def samples(service, admin_key):
    response = httpx.get(f"{service.url}/metrics", headers={"Authorization": f"Bearer {admin_key}"}, timeout=60)
    assert response.status_code == 200, response.text
    families = list(text_string_to_metric_families(response.text))
    names = {family.name if family.type != "counter" else f"{family.name}_total" for family in families}
    assert names <= {*METRICS, NODE_UP}
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def has(found, name, **labels):
    return any(own == name and labels.items() <= had.items() and value > 0 for own, had, value in found)


def test_a_job_and_its_completions_are_in_the_metrics_and_the_live_state(service, http, admin_key):
    model = register(http)
    job = post_job(http, model, roll_out(service.openai(), inference_name(model)))
    wait_until(lambda: http.get(f"/preview/training-jobs/{job}").json()["state"] == "succeeded")
    roll_out(service.openai(), inference_name(model), num=2)

    [engines] = http.get("/preview/engines").json()["data"]
    [replica] = engines["replicas"]
    assert engines["num_running"] == 1 and replica["condition"] == "running" and replica["kv_tokens"] > 0
    assert (model["id"], 1) in [(own["model_id"], own["step"]) for own in replica["own_versions"]]
    assert replica["tokens_sampled"] > 0 and replica["slots"] >= 1

    [learners] = http.get("/preview/learners").json()["data"]
    assert learners["state"] == "running" and learners["publications"]["count"] >= 1
    assert learners["learners"][0]["tokens_per_s"] > 0

    base = {"base_model": "tandem/tiny"}
    chat = {"route": "/v1/chat/completions", "status": "200"}

    def is_reported():
        found = samples(service, admin_key)
        return (
            has(found, "tandem_http_requests_total", **chat, answered_by="gateway")
            and has(found, "tandem_jobs_ended_total", **base, state="succeeded")
            and has(found, "tandem_phase_seconds_count", **base, phase="step")
            and has(found, "tandem_tokens_trained_total", **base)
            and has(found, "tandem_engine_up", **base)
            and has(found, "tandem_publish_seconds_count", **base)
        )

    wait_until(is_reported)  # processes report every 10 s
