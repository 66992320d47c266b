"""Malformed requests to every part of the API: each error says where and why, and the request has no effect.

test_malformed_payloads tests malformed training data.
"""

import json

import pytest
from refusals import assert_one_shape, everything_held
from serve_fakes import groups, trajectory

from tandem.serve.keys import create_key

MODELS, JOBS, KEYS = "/v1/preview/models", "/v1/preview/training-jobs", "/v1/preview/keys"
MODEL = f"{MODELS}/MODEL"
JOB = f"{JOBS}/JOB"
UNKNOWN = "6f0a4b06-26ca-4d3c-8b8a-7d8c2a5c1b3e"
LEFT_OUT = object()
MISSING = "is missing; send it"
NOT_AN_ID = "must be an id (a UUID) as this service gave it"
NOT_A_NAME = "must be 1 to 128 letters"
NOT_LISTED = "isn't the id of an item of this list; send the last_id of one of its pages"


@pytest.fixture
def http(http, store):
    """An admin client."""
    http.headers["Authorization"] = f"Bearer {create_key(store, 'admin', 'team', 'admin')}"
    return http


@pytest.fixture
def ids(http, model):
    """The ids that replace MODEL and JOB in paths and bodies."""
    body = {"model_id": model["id"], "trajectory_groups": groups()}
    return {"MODEL": model["id"], "JOB": http.post(JOBS, json=body).json()["id"]}


@pytest.fixture
def refused(http, ids, engine, store_url, services):
    """Send a request and return its error."""
    held = lambda: everything_held(store_url, services.config.home / "artifacts")  # noqa: E731

    def refused(method, path, status=422, **request):
        for name, id in ids.items():
            path = path.replace(name, id)
        before = held()
        error = assert_one_shape(http.request(method, path, **request), status)
        assert held() == before
        assert engine.asked == []
        return error

    return refused


def table(columns, rows):
    return pytest.mark.parametrize(columns, rows.values(), ids=rows)


def changed(mapping, changes):
    return {key: value for key, value in {**mapping, **changes}.items() if value is not LEFT_OUT}


BODIES = {
    ("POST", MODELS): {"project": "project", "name": "other", "base_model": "tandem/tiny"},
    ("DELETE", f"{MODEL}/checkpoints"): {"steps": [1]},
    ("POST", f"{MODEL}/log"): {"model_id": UNKNOWN, "split": "val", "trajectory_groups": []},
    ("POST", JOBS): {"model_id": UNKNOWN, "trajectory_groups": []},
    ("POST", KEYS): {"name": "laptop", "role": "train"},
    ("POST", "/v1/chat/completions"): {"model": "tandem/tiny", "messages": []},
    ("POST", "/v1/completions"): {"model": "tandem/tiny", "prompt": "x"},
}


@table(
    ("sent", "words"),
    {
        "no bytes": (b"", "isn't JSON"),
        "blanks": (b" \n ", "isn't JSON"),
        "an unfinished body": (b"OPEN", "isn't JSON"),
        "an unfinished string": (b'OPEN, "x": "y', "isn't JSON"),
        "two bodies": (b"OPEN}OPEN}", "isn't JSON"),
        "JSON Lines": (b"OPEN}\nOPEN}", "isn't JSON"),
        "a form": (b"model_id=1&split=val", "isn't JSON"),
        "single quotes": (b"{'name': 'agent'}", "isn't JSON"),
        "a trailing comma": (b"OPEN,}", "isn't JSON"),
        "a comment": (b"// mine\nOPEN}", "isn't JSON"),
        "a byte order mark": (b"\xef\xbb\xbfOPEN}", "isn't JSON"),
        "UTF-16": ('{"name": "agent"}'.encode("utf-16"), "isn't JSON"),
        "Latin-1": (b'OPEN, "x": "\xe4"}', "isn't JSON"),
        "half a surrogate": (rb'OPEN, "x": "\ud800"}', "isn't JSON"),
        "half a surrogate in bytes": (b'OPEN, "x": "\xed\xa0\x80"}', "isn't JSON"),
        "a control character": (b'OPEN, "x": "\x01"}', "isn't JSON"),
        "hexadecimal": (b'OPEN, "x": 0x10}', "isn't JSON"),
        "a leading zero": (b'OPEN, "x": 01}', "isn't JSON"),
        "a number of 5000 digits": (b'OPEN, "x": %s}' % (b"9" * 5000), "isn't JSON"),
        "5000 arrays deep": (b'OPEN, "x": {"y": %s%s}}' % (b"[" * 5000, b"]" * 5000), "isn't JSON"),
        "5000 objects deep": (b'{"x": ' * 5000 + b"1" + b"}" * 5000, "isn't JSON"),
        "an array": (b"[OPEN}]", "must be an object"),
        "a string": (b'"{}"', "must be an object"),
        "a number": (b"5", "must be an object"),
        "true": (b"true", "must be an object"),
        "null": (b"null", "must be an object"),
    },
)
def test_a_body_that_is_no_json_object(refused, sent, words):
    for (method, path), body in BODIES.items():
        opened = json.dumps(body).encode().removesuffix(b"}")
        error = refused(method, path, content=sent.replace(b"OPEN", opened))
        assert error["param"] == "body", path
        assert words in error["message"], path


def test_a_number_that_json_has_not(refused):
    for (method, path), body in BODIES.items():
        for number in ("NaN", "-Infinity", "1e999"):
            error = refused(method, path, content=json.dumps({**body, "x": [1, "@"]}).replace('"@"', number))
            assert error["param"] in ("body.x.1", "body.x"), path  # not a number, or an unknown field


def test_a_key_that_is_not_known(refused):
    for (method, path), body in BODIES.items():
        if not path.endswith("completions"):  # the engine checks the other fields
            error = refused(method, path, json={**body, "Name": 1})
            assert error["param"] == "body.Name", path
            assert "known" in error["message"]


@table(
    ("changes", "place", "words"),
    {
        "no name": ({"name": LEFT_OUT}, "name", MISSING),
        "an empty name": ({"name": ""}, "name", NOT_A_NAME),
        "a path as the name": ({"name": "../agent"}, "name", NOT_A_NAME),
        "a version as the name": ({"name": "agent:step3"}, "name", NOT_A_NAME),
        "a name of two lines": ({"name": "agent\n"}, "name", NOT_A_NAME),
        "a name with a zero byte": ({"name": "a\x00b"}, "name", NOT_A_NAME),
        "an enormous name": ({"name": "x" * 10**6}, "name", NOT_A_NAME),
        "an object for a name": ({"name": {}}, "name", "must be a string"),
        "null for a project": ({"project": None}, "project", "must be a string"),
        "an unknown base model": ({"base_model": "gpt-7"}, "base_model", "this service has: tandem/tiny"),
        "an enormous base model": ({"base_model": "x" * 10**6}, "base_model", "this service has: tandem/tiny"),
        "a list of entities": ({"entity": ["team"]}, "entity", "must be a string"),
        "a string for a boolean": ({"return_existing": "perhaps"}, "return_existing", "must be true or false"),
        "a misspelt key": ({"base_modl": "x"}, "base_modl", "did you mean base_model?"),
    },
)
def test_registering_a_model(refused, changes, place, words):
    error = refused("POST", MODELS, json=changed(BODIES["POST", MODELS], changes))
    assert error["param"] == f"body.{place}"
    assert words in error["message"]


def test_registering_what_is_another_entitys_or_there_already(refused):
    body = {**BODIES["POST", MODELS], "name": "agent"}
    error = refused("POST", MODELS, 403, json={**body, "entity": "rivals"})
    assert (error["code"], error["param"]) == ("wrong_entity", "entity")
    error = refused("POST", MODELS, 409, json=body)
    assert (error["code"], error["param"]) == ("model_exists", "name")
    assert "return_existing" in error["message"]


@table(
    ("steps", "place", "words"),
    {
        "no steps": (LEFT_OUT, "steps", MISSING),
        "null": (None, "steps", "must be an array"),
        "a number": (1, "steps", "must be an array"),
        "a negative step": ([1, -1], "steps.1", "must be greater than or equal to 0"),
        "a fraction": ([1.5], "steps.0", "must be a whole number"),
        "a word": (["newest"], "steps.0", "must be a whole number"),
        "an enormous step": ([2**31], "steps.0", "must be less than or equal to 2147483647"),
        "a step of 400 digits": ([10**400], "steps.0", "must be"),
        "too many": (list(range(10_001)), "steps", "must have at most 10000 items"),
    },
)
def test_deleting_checkpoints(refused, steps, place, words):
    error = refused("DELETE", f"{MODEL}/checkpoints", json=changed({}, {"steps": steps}))
    assert error["param"] == f"body.{place}"
    assert words in error["message"]


@table(
    ("changes", "place", "words"),
    {
        "no split": ({"split": LEFT_OUT}, "split", MISSING),
        "a path as the split": ({"split": "../train"}, "split", NOT_A_NAME),
        "no groups": ({"trajectory_groups": LEFT_OUT}, "trajectory_groups", MISSING),
        "a trajectory for a group": (
            {"trajectory_groups": [*groups(), trajectory(1.0)]},
            "trajectory_groups.1.trajectories",
            "is missing, and this is a trajectory",
        ),
        "a reward for a group": (
            {"trajectory_groups": [{"reward": 1.0}]},
            "trajectory_groups.0.trajectories",
            "is missing, and this is a trajectory",
        ),
        "a reward in words": (
            {"trajectory_groups": [{"trajectories": [trajectory(1.0), trajectory("high")]}]},
            "trajectory_groups.0.trajectories.1.reward",
            "must be a number",
        ),
        "metrics beside the groups": ({"metrics": {"reward": 1}}, "metrics", "isn't known here"),
        "another model than the path's": ({"model_id": UNKNOWN}, "model_id", f"is {UNKNOWN}, but the path names model"),
    },
)
def test_logging_trajectories(refused, ids, changes, place, words):
    body = {"model_id": ids["MODEL"], "split": "val", "trajectory_groups": groups()}
    error = refused("POST", f"{MODEL}/log", json=changed(body, changes))
    assert error["param"] == f"body.{place}"
    assert words in error["message"]


@table(
    ("path", "place", "words"),
    {
        "an invalid cursor": (f"{MODELS}?after=x", "after", NOT_AN_ID),
        "a job as a model's cursor": (f"{MODELS}?after=JOB", "after", NOT_LISTED),
        "a model as a job's cursor": (f"{JOBS}?after=MODEL", "after", NOT_LISTED),
        "a job as a log's cursor": (f"{MODEL}/logs?after=JOB", "after", NOT_LISTED),
        "a model as a key's cursor": (f"{KEYS}?after=MODEL", "after", NOT_LISTED),
        "a job's event as a checkpoint's cursor": (f"{MODEL}/checkpoints?after=JOB:1", "after", NOT_LISTED),
        "a checkpoint as an event's cursor": (f"{JOB}/events?after=MODEL:1", "after", NOT_LISTED),
        "an event without a number": (f"{JOB}/events?after=JOB:", "after", NOT_LISTED),
        "a negative event": (f"{JOB}/events?after=JOB:-1", "after", NOT_LISTED),
        "an event in other digits": (f"{JOB}/events?after=JOB:%D9%A1", "after", NOT_LISTED),
        "an enormous event": (f"{JOB}/events?after=JOB:99999999999999999999", "after", NOT_LISTED),
        "a version in words": (f"{MODEL}/versions?after=newest", "after", "must be a whole number"),
        "a negative version": (f"{MODEL}/versions?after=-1", "after", "must be greater than or equal to 0"),
        "an enormous version": (f"{MODEL}/versions?after=99999999999", "after", "less than or equal to 2147483647"),
        "a limit of 0": (f"{MODELS}?limit=0", "limit", "must be greater than or equal to 1"),
        "a negative limit": (f"{JOBS}?limit=-1", "limit", "must be greater than or equal to 1"),
        "a limit of 101": (f"{JOBS}?limit=101", "limit", "must be less than or equal to 100"),
        "a limit of 1001 events": (f"{JOB}/events?limit=1001", "limit", "must be less than or equal to 1000"),
        "an enormous limit": (f"{MODELS}?limit={'9' * 5000}", "limit", "must be"),
        "a limit in words": (f"{KEYS}?limit=all", "limit", "must be a whole number"),
        "an empty limit": (f"{MODELS}?limit=", "limit", "must be a whole number"),
        "an unknown order": (f"{MODELS}?order=up", "order", "must be 'asc' or 'desc'"),
        "an unknown state": (f"{JOBS}?state=asleep", "state", "must be 'queued', 'running', 'succeeded', 'failed'"),
        "a project with a slash": (f"{MODELS}?project=a/b", "project", NOT_A_NAME),
        "a name with a zero byte": (f"{MODELS}?name=%00", "name", NOT_A_NAME),
        "a name that isn't UTF-8": (f"{MODELS}?name=%ff", "name", NOT_A_NAME),
        "a negative wait": (f"{MODEL}/versions?wait=-1", "wait", "must be greater than or equal to 0"),
        "an infinite wait": (f"{MODEL}/versions?wait=inf", "wait", "must be"),
        "a wait of NaN": (f"{MODEL}/versions?wait=nan", "wait", "must be"),
        "a wait in words": (f"{MODEL}/versions?wait=long", "wait", "must be a number"),
    },
)
def test_lists(refused, path, place, words):
    error = refused("GET", path)
    assert error["param"] == f"query.{place}"
    assert words in error["message"]


@pytest.mark.parametrize("id", ["x", "7", "%2e%2e", "%00", "%ff", "x" * 3000, "null", "MODEL:1"])
def test_an_id_that_is_none(refused, id):
    for method, path, place in (
        ("GET", f"{MODELS}/{id}", "model_id"),
        ("DELETE", f"{MODELS}/{id}", "model_id"),
        ("GET", f"{MODELS}/{id}/versions", "model_id"),
        ("GET", f"{JOBS}/{id}", "training_job_id"),
        ("POST", f"{JOBS}/{id}/cancel", "training_job_id"),
        ("GET", f"{JOBS}/{id}/artifacts/a.png", "training_job_id"),
        ("DELETE", f"{KEYS}/{id}", "key_id"),
    ):
        error = refused(method, path)
        assert error["param"] == f"path.{place}"
        assert NOT_AN_ID in error["message"]


def test_an_id_of_nothing(refused):
    for method, path, code in (
        ("GET", f"{MODELS}/{UNKNOWN}", "model_not_found"),
        ("GET", f"{MODELS}/JOB", "model_not_found"),
        ("DELETE", f"{MODELS}/{UNKNOWN}", "model_not_found"),
        ("GET", f"{MODELS}/{UNKNOWN}/logs", "model_not_found"),
        ("GET", f"{JOBS}/MODEL", "training_job_not_found"),
        ("POST", f"{JOBS}/{UNKNOWN}/cancel", "training_job_not_found"),
        ("DELETE", f"{KEYS}/MODEL", "key_not_found"),
    ):
        error = refused(method, path, 404)
        assert error["code"] == code


@pytest.mark.parametrize("name", ["plot.png", "%2e%2e", "%00", "%ff", "x" * 3000])
def test_an_artifact_of_nothing(refused, name):
    error = refused("GET", f"{JOB}/artifacts/{name}", 404)
    assert (error["code"], error["param"]) == ("artifact_not_found", "name")


@pytest.mark.parametrize("sent", ["", "x" * 256, "naïve", "a\x00b", "two\nlines"])
def test_an_idempotency_key_that_is_none(refused, ids, sent):
    body = {"model_id": ids["MODEL"], "trajectory_groups": groups()}
    error = refused("POST", JOBS, json=body, headers={"Idempotency-Key": sent.encode("latin-1")})
    assert error["param"] == "header.Idempotency-Key"
    assert "1 to 255" in error["message"]


@table(
    ("name", "status", "words"),
    {
        "null": (None, 422, "must be the name of a model, like entity/project/name"),
        "a number": (7, 422, "must be the name of a model, like entity/project/name"),
        "an array": (["tandem/tiny"], 422, "must be the name of a model, like entity/project/name"),
        "nothing": ("", 404, "entity/project/name[:stepN]"),
        "part of a name": ("agent", 404, "or a base model: tandem/tiny"),
        "another entity's": ("rivals/project/agent", 404, "of a model that this key may use"),
        "a path": ("../../etc/passwd", 404, "entity/project/name[:stepN]"),
        "a zero byte": ("team/project/agent\x00", 404, "entity/project/name[:stepN]"),
        "an enormous name": ("x" * 10**6, 404, "entity/project/name[:stepN]"),
        "a version in words": ("team/project/agent:latest", 404, "entity/project/name[:stepN]"),
        "an enormous version": ("team/project/agent:step99999999999", 404, "entity/project/name[:stepN]"),
        "a future version": ("team/project/agent:step9", 404, "that step hasn't been trained yet"),
    },
)
def test_completions_of_no_model(refused, name, status, words):
    for path in ("/v1/chat/completions", "/v1/completions"):
        error = refused("POST", path, status, json={"model": name})
        assert error["param"] == ("body.model" if status == 422 else "model")
        assert words in error["message"]


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic dGVhbTp4", "Bearer tdm_x", "Bearer \xff", f"Bearer {'x' * 10**5}"]
)
def test_a_key_that_is_none(refused, header):
    for (method, path), body in BODIES.items():
        error = refused(method, path, 401, json=body, headers={"Authorization": header.encode("latin-1")})
        assert error["code"] == "invalid_api_key"
        assert "API key" in error["message"]


def test_every_route_refuses_in_the_same_way(refused, ids, app):
    """Strange ids, parameters, bodies and methods, and no key, on every route."""
    names = {"model_id": ids["MODEL"], "training_job_id": ids["JOB"], "key_id": UNKNOWN, "name": "a.png"}
    names |= {"response_id": UNKNOWN, "step": "1", "file": "adapter_config.json", "dataset_id": UNKNOWN}
    names |= {"file_id": "file-1", "fine_tuning_job_id": "ftjob-1", "alert_id": UNKNOWN}
    names |= {"trajectory_id": f"{ids['JOB']}.0.0"}
    for path, operations in app.openapi()["paths"].items():
        if path.startswith(("/v1/{project_id}/", "/api/v1/")):
            continue  # these APIs have other shapes, and tests of their own
        known, is_openai = path.format(**names), path.startswith(("/v1/files", "/v1/fine_tuning"))
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - set(map(str.upper, operations)):
            assert refused(method, known, 405)["code"] == "route"
        for method, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                name, types = parameter["name"], json.dumps(parameter["schema"])
                if parameter["in"] == "path":
                    refused(
                        method,
                        path.format(**names | {name: "%00"}),
                        404 if is_openai or name in ("name", "file", "response_id", "trajectory_id") else 422,
                    )
                elif any(word in types for word in ("uuid", "integer", "number", "enum", "pattern")):
                    param = refused(method, known, params={name: "?"})["param"]
                    assert param.removesuffix(".0") == f"query.{name}"  # of lists, the first item
            if "requestBody" in operation:
                error = refused(method, known, 400 if is_openai else 422, content=b"{")
                assert error["param"] in ("body", "body.line.1")  # of JSON lines, the first is broken
            if path.startswith("/v1/"):
                assert refused(method, known, 401, headers={"Authorization": ""})["code"] == "invalid_api_key"
    assert refused("GET", "/v1/nothing/here", 404)["code"] == "route"


def test_what_is_odd_but_clear_is_taken(http, model, store):
    """A client may omit, add and repeat parts if that doesn't change the meaning."""
    post = lambda changes: http.post(JOBS, json={"model_id": model["id"], **changes})  # noqa: E731
    spelt = (model["id"].upper(), model["id"].replace("-", ""), f"urn:uuid:{model['id']}")
    odd = [
        {"trajectory_groups": []},
        {"trajectory_groups": [{"trajectories": []}]},
        {"trajectory_groups": [{"trajectories": [trajectory(1.0)]}]},
        {"trajectory_groups": [{"trajectories": [{}, {"reward": 1}]}]},
        {"trajectory_groups": groups(), "experimental_config": None},
        {"trajectory_groups": [{**groups()[0], "exceptions": [], "metadata": {}, "who": {"x": [None]}}]},
        {"trajectory_groups": [{"trajectories": [trajectory(0), trajectory(1, initial_policy_version=3)]}]},
        {"trajectory_groups": [{"trajectories": [trajectory(0), trajectory(1, metadata={"a": "\x00 \U0001f600"})]}]},
        *({"model_id": id, "trajectory_groups": groups()} for id in spelt),
    ]
    for changes in odd:
        assert post(changes).status_code == 200, changes
    twice = json.dumps({"model_id": "the last one counts", "trajectory_groups": groups(), "Model_id": model["id"]})
    twice = twice.replace("Model_id", "model_id")
    as_text = {"Content-Type": "text/plain; charset=latin-1"}  # the default content type of curl and fetch
    assert http.post(JOBS, content=twice, headers=as_text).status_code == 200
    assert len(store.jobs.page("team", limit=100)) == len(odd) + 1
