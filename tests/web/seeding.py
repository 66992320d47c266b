"""The data of the service that the page shows in tests. Each owner of a view adds a function to SEEDS.

A function gets the service (`served.store`, `served.services`, `served.http(role)`), and returns the ids that its tests
need: they find them in `served.seeded[NAME]`. Names begin with the view's, so that no test depends on another's data.
"""

from serve_fakes import groups

BASE = "tandem/tiny"
NUM_MODELS = 3


def seed_overview(served):
    """Three models; the first has a queued job."""
    http = served.http("train")
    models = [
        http.post("/v1/preview/models", json={"project": "overview", "name": f"agent-{i}", "base_model": BASE}).json()
        for i in range(NUM_MODELS)
    ]
    job = http.post(
        "/v1/preview/training-jobs",
        json={"model_id": models[0]["id"], "trajectory_groups": groups(), "experimental_config": {}},
    ).json()
    return {"models": models, "job": job}


SEEDS = {"overview": seed_overview}
