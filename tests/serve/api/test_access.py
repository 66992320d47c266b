"""Access to every route by role and by entity, including routes added later."""

import re
import uuid

import pytest
from fastapi import APIRouter, FastAPI
from run_data import RunData
from serve_fakes import groups, imported

from tandem.cluster.artifacts import job_artifact_key
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TINY
from tandem.serve.alerts.findings import Finding
from tandem.serve.alerts.store import AlertStore
from tandem.serve.api.auth import ROLES, declared_role
from tandem.serve.keys import create_key
from tandem.serve.tinker.api.rest.console import ELSEWHERE
from tandem.serve.trajectories.indexing import index_next

OPEN = {"/health", "/ready", "/openapi.json", "/", "/docs", "/redoc", "/assets/{name}"}
SIGNED = {"/wandb/uploads/{token}", "/wandb/downloads/{token}", "/tinker/files/{token}/{name}"}
"""Their URLs carry a signature instead of a key: tests/serve/wandb, tests/serve/tinker."""
STREAM = "/v1/preview/changes"  # has an end only if the request says when
METRICS = "/metrics"
LIVE = {METRICS, "/v1/preview/engines", "/v1/preview/learners"}
"""Of the whole service; tests/serve/observing has their limits."""
OF_WANDB = {"/graphql", "/files/{entity}/{project}/{run}/file_stream"}
OF_RUN = "/api/v1/training_runs/{run_id}/checkpoints/{checkpoint_id:path}"
SHARED = {"/api/v1/tokenizers/{base_model:path}"}  # by all entities
FILE = "sequence_000.png"
STEP = 987654321
IMPORTED = imported()
CODES = {
    "ModelArts.0201": "invalid_api_key",
    "ModelArts.0203": "invalid_api_key",
    "ModelArts.0108": "insufficient_role",
    "ModelArts.0210": "wrong_project",
    "authentication_error": "invalid_api_key",
    "permission_error": "insufficient_role",
}
OF_A_PROJECT = "/v1/{project_id}/"
NO_LISTS = {"/v1/preview/me", "/v1/preview/alerts/count", "/v1/preview/usage"}
NO_LISTS |= {"/api/v1/healthz", "/api/v1/get_server_capabilities", "/api/v1/auth/apikey/me"}
NOT_BUILT = ("/pause", "/resume")  # refuse, with a sentence
NOT_HERE = {f"/api/v1{path}" for _, path in ELSEWHERE}  # likewise, for anyone


def operations(app):
    """Return (method, path, role) of every operation that needs a key."""
    return [
        (method, route.path, declared_role([dependency.call for dependency in route.dependant.dependencies]))
        for route in app.routes
        if route.path not in OPEN | SIGNED
        for method in sorted(route.methods - {"HEAD"})  # has no body to look at; its GET has the same door
    ]


def filled(path, ids=None):
    """Return a path with its parameters filled in: from `ids`, else with unknown ids in the project of "team"."""
    known = {"project_id": "team", **(ids or {})}
    path = f"{path}?seconds=0" if path == STREAM else path
    return re.sub(r"{(\w+)(?::path)?}", lambda match: known.get(match[1]) or str(uuid.uuid4()), path)


def refusal(response):
    """Return code and message of an error, also in the shapes of the training-job-configs API and of Anthropic."""
    body = response.json()
    if body.get("type") == "error":
        return CODES[body["error"]["type"]], body["error"]["message"]
    if "error" in body:
        return body["error"]["code"], body["error"]["message"]
    assert body["is_success"] is False
    return CODES[body["error_code"]], body["error_message"]


@pytest.fixture
def send(http, store):
    """Send a request with a key of a role and entity; without a role, without a key."""
    http.headers.pop("Authorization")
    keys = {}

    def send(method, path, role=None, entity="team", **request):
        if role is not None:
            if (role, entity) not in keys:
                keys[role, entity] = create_key(store, "k", entity, role)
            request["headers"] = {"Authorization": f"Bearer {keys[role, entity]}"}
        return http.request(method, path, **request)

    return send


def test_every_operation_declares_a_role(app):
    found = operations(app)
    assert len(found) >= 20
    for method, path, role in found:
        assert path.startswith(("/v1/", "/api/v1/")) or path in OF_WANDB | {METRICS}, "routes outside need no key"
        assert role in ROLES, f"{method} {path} has no `caller: InferCaller`, `TrainCaller` or `AdminCaller`"


def test_an_operation_without_a_role_would_be_noticed():
    app, router = FastAPI(openapi_url=None), APIRouter(prefix="/v1")
    router.add_api_route("/new", lambda: None)
    app.include_router(router)
    assert operations(app) == [("GET", "/v1/new", None)]


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer tdm_wrong", "Basic dGRtOg==", "Bearer tdm_"])
def test_without_a_valid_key_nothing_is_read(app, send, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    for method, path, _ in operations(app):
        response = send(method, filled(path), headers=headers, content=b"{" if method == "POST" else None)
        assert response.status_code == 401, (method, path, response.text)
        assert response.headers["WWW-Authenticate"] == "Bearer"
        code, message = refusal(response)
        assert code == "invalid_api_key"
        assert "key" in message


def test_a_lower_role_is_told_which_it_needs_and_how_to_get_it(app, send):
    for method, path, needed in operations(app):
        for role in ROLES[: ROLES.index(needed)]:
            response = send(method, filled(path), role, content=b"{" if method == "POST" else None)
            assert response.status_code == 403, (method, path, role, response.text)
            code, message = refusal(response)
            assert code == "insufficient_role"
            assert f"tandem keys create --role {needed} --entity team" in message


def test_a_sufficient_role_gets_past_the_door(app, send):
    for method, path, needed in operations(app):
        for role in ROLES[ROLES.index(needed) :]:
            response = send(method, filled(path), role, content=b"{" if method == "POST" else None)
            assert response.status_code not in (401, 403), (method, path, role, response.text)


def test_other_methods_tell_nothing(app, model, send):
    ids = {"model_id": model["id"], "project_id": "a-project"}
    there = {(method, route.path) for route in app.routes if route.path not in OPEN for method in route.methods}
    for path in {path for _, path in there}:
        for method in {"HEAD", "OPTIONS", "PUT", "PATCH", "TRACE"} - {m for m, p in there if p == path}:
            for role, entity in ((None, None), ("infer", "others")):
                response = send(method, filled(path, ids), role, entity)
                assert response.status_code == 405, (method, path, response.text)
                assert "agent" not in response.text and "team" not in response.text
                assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.fixture
def team(send, services, store):
    """Create an object of each kind for entity "team". Return a value for every path parameter and body."""
    body = {"project": "project", "name": "agent", "base_model": "tandem/tiny"}
    model = send("POST", "/v1/preview/models", "train", json=body).json()["id"]
    trained = {"model_id": model, "trajectory_groups": groups()}
    job = send("POST", "/v1/preview/training-jobs", "train", json=trained).json()["id"]
    for owner in (job, model):
        services.artifacts.write_blob(job_artifact_key(owner, FILE), b"png")
    create_key(store, "spare", "team", "infer")
    [key] = [row.id for row in store.keys.all("team") if row.name == "spare"]
    digest = ResolvedBaseModel(TINY).write_initial_version(services.artifacts)
    store.lineage.add_import(model, "team", STEP, digest, {}, IMPORTED.sha256)
    form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", b"{}")}}
    file = send("POST", "/v1/files", "train", **form).json()["id"]
    wanted = {"model": "tandem/tiny", "training_file": file}
    tuning = send("POST", "/v1/fine_tuning/jobs", "train", json=wanted).json()["id"]
    ids = {"model_id": model, "training_job_id": job, "key_id": key, "name": FILE, "step": str(STEP)}
    ids |= {"file": "adapter_config.json", "file_id": file, "fine_tuning_job_id": tuning}
    row = b'{"messages": [{"role": "user", "content": "x"}]}'
    ids["dataset_id"] = send("POST", "/v1/preview/datasets", "train", content=row).json()["id"]
    log = send("POST", f"/v1/preview/models/{model}/log", "train", json={**trained, "split": "val"}).json()["id"]
    ids["trajectory_id"] = f"{log}.0.0"
    while index_next(services.store, services.artifacts, services.config):
        pass
    about = Finding("failed_jobs", model, "title", "cause", "remedy", "team", links={"model_id": model})
    [alert] = AlertStore(services.store.database).open([about], [])
    ids["alert_id"] = alert.id
    opened = {"tags": [], "sdk_version": "0.38.0"}
    ids["session_id"] = send("POST", "/api/v1/create_session", "infer", json=opened).json()["session_id"]
    sampling = {"session_id": ids["session_id"], "sampling_session_seq_id": 0, "base_model": "tandem/tiny"}
    opened = send("POST", "/api/v1/create_sampling_session", "infer", json=sampling).json()
    ids["sampler_id"] = opened["sampling_session_id"]
    data = RunData(services)
    run = data.run()
    ids |= {"run_id": run.id, "checkpoint_id": data.save(run, "saved").partition(f"{run.id}/")[2]}
    bodies = {
        ("PUT", f"{OF_RUN}/ttl"): {"ttl_seconds": 3600},
        ("POST", "/api/v1/sessions/{session_id}/finish"): {"reason": {"type": "success"}},
        ("POST", "/v1/preview/training-jobs"): trained,
        ("POST", "/v1/preview/models/{model_id}/log"): {**trained, "split": "val"},
        ("DELETE", "/v1/preview/models/{model_id}/checkpoints"): {"steps": [1]},
        ("POST", "/v1/preview/models/{model_id}/versions"): IMPORTED.archive,  # a repeat, which does no work
    }
    return ids, bodies


def test_what_other_entities_own_is_not_found(app, send, team):
    ids, bodies = team
    theirs = [
        (method, path)
        for method, path, _ in operations(app)
        if (re.search(r"{\w+}", path) or (method, path) in bodies)
        if not path.startswith(OF_A_PROJECT) and path not in OF_WANDB | NOT_HERE | SHARED
        if "{response_id}" not in path  # nobody has one
    ]
    assert {name for _, path in theirs for name in re.findall(r"{(\w+)(?::path)?}", path)} == set(ids)
    # The owner's requests succeed, so a stranger's fail for no other reason. Deletions come last.
    for entity in ("others", "team"):
        for method, path in sorted(theirs, key=lambda item: (item[0] == "DELETE", -len(item[1]))):
            body = bodies.get((method, path))
            sent = {"content": body} if isinstance(body, bytes) else {"json": body}
            response = send(method, filled(path, ids), "admin", entity, **sent)
            found = (400,) if path.endswith(NOT_BUILT) else (200, 204, 302)
            expected = found if entity == "team" else (404,)
            assert response.status_code in expected, (entity, method, path, response.text)


def test_another_project_is_closed(app, send):
    closed = [(method, path) for method, path, _ in operations(app) if path.startswith(OF_A_PROJECT)]
    assert len(closed) >= 19
    for method, path in closed:
        response = send(method, filled(path), "admin", "others", content=b"{" if method in ("POST", "PUT") else None)
        assert (response.status_code, refusal(response)[0]) == (403, "wrong_project"), (method, path, response.text)


def test_lists_hold_only_what_the_entity_owns(app, send, team):
    ids, _ = team
    lists = [path for method, path, _ in operations(app) if method == "GET" and "{" not in path]
    lists = [path for path in lists if path not in NO_LISTS | NOT_HERE | LIVE | {STREAM}]
    assert len(lists) >= 4
    for path in lists:
        assert any(id in send("GET", path, "admin").text for id in (*ids.values(), "team/project/agent")), path
        stranger = send("GET", path, "admin", "others").text
        assert not any(id in stranger for id in (*ids.values(), "team")), path
