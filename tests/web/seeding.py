"""The data of the service that the page shows in tests. Each owner of a view adds a function to SEEDS.

A function gets the service (`served.store`, `served.services`, `served.http(role)`), and returns the ids that its tests
need: they find them in `served.seeded[NAME]`. Names begin with the view's, so that no test depends on another's data.
"""

from cluster_views import answer, engines, learner, learners, life, replica
from seeding_versions import seed_versions
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


def seed_cluster(served):
    """Three engine replicas, of which one works, and two learners. The one that works holds two versions of a model."""
    http = served.http("train")
    model = http.post("/v1/preview/models", json={"project": "cluster", "name": "agent", "base_model": BASE}).json()
    digests = [letter * 64 for letter in "cde"]
    for step, digest in enumerate(digests[:2], 1):
        served.store.lineage.add_import(model["id"], "team", step, digest, {}, digest)
    gb = 10**9
    plan = {"gpu": 80 * gb, "learner": 21 * gb, "engine": 12 * gb, "kv_cache": 44 * gb, "kv_tokens": 600_000}
    works = answer(
        load={"adapters": ["0" * 64, *digests], "slots_used": 3, "num_running": 48, "num_waiting": 5, "kv_usage": 0.97},
        device="NVIDIA H100 80GB HBM3",
        gpu_memory={"used": 71 * gb, "total": 80 * gb},
        plan={**plan, "max_loras": 4, "is_shared": True, "takes_turns": False},
    )
    dead = answer(error="The vLLM engine core died. <img src=x onerror=alert(1)>") | {"load": None}
    memory = {"allocated": 15 * gb, "reserved": 19 * gb, "peak": 18 * gb, "total": 80 * gb}
    measured = {"device": "NVIDIA H100 80GB HBM3", "tokens_per_s": 6200.0, "mfu": 0.22, "memory": memory}
    view = served.services.cluster
    view.found_engines = {
        BASE: engines(
            replica("works1", said=works),
            replica("silent2", "not_answering", None, "10.0.0.2"),
            replica("dead3", "unhealthy", dead, "10.0.0.3"),
            fault="1 of 3 engines run; it failed and is being restarted; its log has the cause.",
            ended=[life("past4", "died", "Out of memory on the GPU."), life("past5", "stopped", None)],
        )
    }
    view.found_learners = {
        BASE: learners(learner(0, measured), learner(1, None, "10.0.0.2"), publish_s=[0.4, 0.5, 0.6, 2.5])
    }
    return {"model": model}


SEEDS = {"cluster": seed_cluster, "overview": seed_overview, "versions": seed_versions}
