"""The data of the service that the page shows in tests. Each view's tests add functions to SEEDS.

A function gets the service (`served.store`, `served.services`, `served.http(role)`), and returns the ids that its tests
need: they find them in `served.seeded[NAME]`. Names of models and projects begin with the view's, so that no test
depends on another's data. Claims take any queued job, so functions that leave jobs open come last.
"""

import math
import uuid

from cluster_views import answer, engines, learner, learners, life, replica
from seeding_clients import seed_clients
from seeding_find import seed_find
from seeding_runs import seed_runs
from seeding_usage import seed_usage
from seeding_versions import seed_versions
from serve_fakes import groups
from token_seeding import seed_tokens

from tandem.cluster.config import WebhookConfig
from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.alerts.findings import Finding
from tandem.serve.alerts.store import AlertStore

BASE = "tandem/tiny"


def add_model(served, project, name):
    """Register a model and return it."""
    body = {"project": project, "name": name, "base_model": BASE}
    return served.http("train").post("/v1/preview/models", json=body).json()


def post_job(served, model, num_groups=1, **config):
    """Post a training job and return its id. It is queued."""
    body = {"model_id": model["id"], "trajectory_groups": groups(num_groups), "experimental_config": config}
    response = served.http("train").post("/v1/preview/training-jobs", json=body)
    assert response.status_code == 200, response.text
    return response.json()["id"]


def claim(served):
    """Claim the next job, as a coordinator does."""
    return served.store.claims.claim_next(BASE, "seeding", 3600)


def train(served, model, metrics, **config):
    """Post a job, and end it with a version of these metrics. Return the job's id."""
    job_id = post_job(served, model, **config)
    claimed = claim(served)
    assert claimed.id == job_id, "an earlier function left a job open"
    served.store.claims.complete(claimed, PolicyVersion(model["id"], claimed.next_step, uuid.uuid4().hex * 2), metrics)
    return job_id


def fail(served, model, message):
    """Post a job, and end it with an error. Return its id."""
    job_id = post_job(served, model)
    served.store.claims.fail(claim(served), message)
    return job_id


def seed_overview(served):
    """Three models: with a rising reward, with a failed job, and untrained."""
    models = [add_model(served, "overview", f"agent-{number}") for number in range(3)]
    for step in range(12):
        reward = 1 - math.exp(-step / 4) + 0.05 * math.sin(7 * step)
        train(served, models[0], {"reward": reward, "reward_std_dev": 0.3, "loss/train": -0.1, "loss/entropy": 0.2})
    train(served, models[1], {"reward": 0.4})
    failed = fail(
        served, models[1], "The learner ran out of memory in the backward pass. Set packed_sequence_length lower."
    )
    return {"models": models, "failed": failed}


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


def seed_open_jobs(served):
    """A queued job of the first model of the overview."""
    return {"job": post_job(served, served.seeded["overview"]["models"][0])}


def seed_alerts(served):
    """Alerts of the entity and of the service, one of them over, with names that are HTML."""
    model = str(uuid.uuid4())
    job = str(uuid.uuid4())
    about = {"model_id": model, "model": "team/alerts/agent"}
    collapse = Finding(
        kind="reward_collapse",
        subject=model,
        entity="team",
        severity="critical",
        title="The reward of team/alerts/agent has collapsed",
        cause="The mean reward of the last 5 versions, up to 40, is 0.08. Up to version 31 it was 0.74.",
        remedy="Look at the groups of version 40. To go on from before, fork the model from version 31.",
        links={**about, "step": 40, "best_step": 31},
    )
    stuck = Finding(
        kind="stuck_job",
        subject=job,
        entity="team",
        title="A job of team/alerts/agent makes no progress <img src=x onerror=alert(1)>",
        cause="No event for 1:10:00. \u202eevil",
        remedy="Cancel it, and post it again.",
        links={**about, "job_id": job},
    )
    engine = Finding(
        kind="engine_unhealthy",
        subject="tandem/tiny",
        severity="critical",
        title="The engine of tandem/tiny isn't healthy",
        cause="tandem/tiny: its engine isn't running; completions wait for it.",
        remedy="Read the engine's log.",
        links={"base_model": "tandem/tiny"},
    )
    over = Finding(
        kind="failed_jobs",
        subject=model,
        entity="team",
        title="The last jobs of team/alerts/agent failed",
        cause="The last 3 jobs have failed.",
        remedy="Read the job's error.",
        links=about,
    )
    alerts = AlertStore(served.store.database)
    alerts.open([over], [])
    alerts.resolve([over.key], [])
    rows = alerts.open([collapse, stuck, engine], [WebhookConfig(url="https://hooks.example.com/secret")])
    return {"model": model, "job": job, "ids": [row.id for row in rows]}


SEEDS = {
    "alerts": seed_alerts,
    "clients": seed_clients,
    "cluster": seed_cluster,
    "find": seed_find,
    "overview": seed_overview,
    "tokens": seed_tokens,
    "usage": lambda served: seed_usage(served, post_job, claim),
    "versions": seed_versions,
    # Those that leave jobs open come last.
    "open_jobs": seed_open_jobs,
    "runs": seed_runs,
}
