"""GET /ready answers 200 only while completions and jobs would be served."""

import pytest
from fastapi.testclient import TestClient

from tandem.serve.api.services import EngineFault

BASE = "tandem/tiny"


def test_a_service_that_serves_is_ready_and_needs_no_key(app):
    with TestClient(app) as client:
        response = client.get("/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ready", "missing": []})


def test_learners_that_start_with_the_next_job_are_not_missed(http, coordinator):
    coordinator[BASE]["learners_running"] = False
    assert http.get("/ready").status_code == 200


def test_one_engine_of_several_serves(http, engine_faults):
    engine_faults[BASE] = EngineFault("1 of 2 engines run; it is starting.", completions_wait=False)
    assert http.get("/ready").status_code == 200
    assert http.get("/health").json()["status"] == "degraded"


def engine_starts(coordinator, engine_faults, services):
    engine_faults[BASE] = EngineFault("its engine isn't running; completions wait for it; it is starting.")


def engines_unknown(coordinator, engine_faults, services):
    engine_faults["raises"] = RuntimeError("the controller died: /secret")


def coordinator_down(coordinator, engine_faults, services):
    coordinator["raises"] = RuntimeError("actor died: /secret")


def coordinator_fails(coordinator, engine_faults, services):
    coordinator[BASE]["last_error"] = "OSError: /secret/path"


def learners_wait(coordinator, engine_faults, services):
    coordinator[BASE] |= {"learners_running": False, "waiting_for": "2 GPU, and 1 is free"}


def coordinator_late(coordinator, engine_faults, services):
    services.base_models.append("late/base")


def coordinator_of_a_base_model_absent(coordinator, engine_faults, services):
    del coordinator[BASE]


def store_down(coordinator, engine_faults, services):
    services.store.close()
    (services.config.home / "tandem.db").unlink()
    (services.config.home / "tandem.db").mkdir()


@pytest.mark.parametrize(
    ("breaks", "word"),
    [
        (engine_starts, "engine"),
        (engines_unknown, "engines"),
        (coordinator_down, "coordinator"),
        (coordinator_fails, "coordinator"),
        (coordinator_late, "coordinator"),
        (coordinator_of_a_base_model_absent, "coordinator"),
        (learners_wait, "learners"),
        (store_down, "store"),
    ],
)
def test_what_is_missing_is_named_without_details(http, coordinator, engine_faults, services, breaks, word):
    breaks(coordinator, engine_faults, services)
    response = http.get("/ready")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    body = response.json()
    assert body["status"] == "not_ready"
    assert any(word in sentence for sentence in body["missing"])
    assert "secret" not in response.text and "GPU" not in response.text


def test_a_full_disk_keeps_jobs_waiting(http, configure):
    configure("limits", min_free_disk_bytes=1 << 62)
    response = http.get("/ready")
    assert response.status_code == 503
    assert "disk" in response.json()["missing"][0]
