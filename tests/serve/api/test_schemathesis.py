"""Generated requests: valid and invalid ones from the OpenAPI document, and corrupted training jobs.

Each response is a documented one. An error states the place and the reason and leaves nothing behind.
"""

import copy
import json
from dataclasses import replace

import pytest
import schemathesis
from cluster_views import FakeView
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from refusals import assert_one_shape, everything_held
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from serve_fakes import groups

from tandem.serve.api.application import create_app
from tandem.serve.keys import create_key

JOBS = "/v1/preview/training-jobs"


def document():
    """Return the OpenAPI document, without the schemas of turns and tools.

    Generating a turn from all published kinds takes seconds, so test_spoilt_jobs corrupts real turns instead.
    """
    document = create_app(services=None).openapi()
    schemas = document["components"]["schemas"]
    for name in ("messages_and_choices", "tools", "additional_histories"):
        schemas["Trajectory"]["properties"][name] = {"type": "array"}
    schemas["LogTrajectories"]["properties"]["trajectory_groups"] = {"type": "array"}  # as in a job
    return document


schemathesis.serializer.alias("application/jsonl", "text/plain")
API = schemathesis.openapi.from_dict(document())
OPERATIONS = {operation.ok().label: operation.ok() for operation in API.get_all_operations()}
del OPERATIONS["POST /v1/files"]  # forms aren't generated here; test_files_api.py spoils them
del OPERATIONS["GET /metrics"]  # of the nodes of a cluster
del OPERATIONS["GET /v1/preview/changes"]  # a stream without an end; test_changes_api.py reads it
OTHER_APIS = {path.split("/")[2] for path in API.raw_schema["paths"] if path.startswith("/v1/")}
CHECKS = [
    not_a_server_error,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


def quick(num_examples):
    """Return settings that generate the same requests in every run. Requests share fixtures, so effects accumulate."""
    return settings(
        max_examples=num_examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def send(app, http, store, store_url, services):
    """A function that sends a request. It checks that an error has the common shape and leaves nothing behind."""
    http.headers["Authorization"] = f"Bearer {create_key(store, 'admin', 'team', 'admin')}"
    app.state.services = replace(services, cluster=FakeView())
    held = lambda: everything_held(store_url, services.config.home / "artifacts")  # noqa: E731
    before = None

    def send(**request):
        nonlocal before
        before = before or held()
        response = http.request(**request)
        after = held()
        if response.status_code >= 400:
            if "is_success" in response.json():  # of the training-job-configs API
                assert set(response.json()) == {"is_success", "error_message", "error_code"}
            else:
                assert_one_shape(response, response.status_code)
            assert after == before
        before = after
        return response

    return send


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("label", OPERATIONS)
def test_made_up_requests(label, mode, send, http, engine, model):
    engine.answers({"choices": []})
    job = http.post(JOBS, json={"model_id": model["id"], "trajectory_groups": groups()}).json()
    known = {"model_id": model["id"], "training_job_id": job["id"], "model": "tandem/tiny", "base_model": "tandem/tiny"}
    operation = OPERATIONS[label]
    if mode == GenerationMode.NEGATIVE and not (operation.path_parameters or operation.query or operation.body):
        pytest.skip("nothing about it can be wrong")

    @quick(5)
    @given(operation.as_strategy(mode), st.booleans())
    def test(case, names_what_exists):
        assume((case.path_parameters or {}).get("project_id") not in OTHER_APIS)  # the path is another route's
        if names_what_exists:
            for part in (case.path_parameters, case.body):
                if isinstance(part, dict):
                    part.update({name: known[name] for name in part if name in known})
        if case.query:
            case.query.pop("wait", None)  # the test would really wait
        request = case.as_transport_kwargs("http://tandem", headers={"Authorization": http.headers["Authorization"]})
        request.pop("cookies", None)
        request["content"] = request.pop("data", None)
        response = send(**request)
        documents_errors = "default" in operation.definition.raw["responses"]
        case.validate_response(response, [*CHECKS, *[checks.status_code_conformance] * documents_errors])

    test()


JUNK = (
    None,
    True,
    0,
    -1,
    1.5,
    2**31,
    10**30,
    1e300,
    "",
    "x",
    "\x00",
    "token_id:1",
    [],
    [[]],
    {},
    {"": None},
    {"type": "x"},
)


def places(value, place=()):
    """Yield every place in a JSON value, including the value itself."""
    yield place
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*place, key))


def at(value, place):
    for key in place:
        value = value[key]
    return value


def is_in(body, loc):
    """Return True if the place is in the body, or is a missing field of an object in it."""
    try:
        at(body, loc[1:-1])
    except (KeyError, IndexError, TypeError):
        return False
    return loc[0] == "body"


SPOILT = [
    {"role": "user", "content": [{"type": "text", "text": "1 + 6 = ?"}]},
    {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "7"},
]


def test_spoilt_jobs(send, model):
    """A job with one value replaced or removed is accepted, or rejected with a place that it really has."""
    good = {"model_id": model["id"], "trajectory_groups": groups(2), "experimental_config": {"learning_rate": 1e-5}}
    last = good["trajectory_groups"][1]["trajectories"][1]
    last["messages_and_choices"] = [*SPOILT, *last["messages_and_choices"]]
    last.update(metadata={"a": 1}, metrics={"b": 2}, tools=[{"type": "function", "function": {"name": "f"}}])
    last.update(initial_policy_version=0, chat_template_kwargs={"a": 1}, start_time="2026-01-31T12:00:00Z")

    @quick(120)
    @given(st.sampled_from([place for place in places(good) if place]), st.sampled_from(JUNK), st.booleans())
    def test(place, junk, is_left_out):
        body = copy.deepcopy(good)
        holder = at(body, place[:-1])
        if is_left_out:
            del holder[place[-1]]
        else:
            holder[place[-1]] = junk
        response = send(method="POST", url=JOBS, content=json.dumps(body))
        if response.status_code == 200:
            send(method="POST", url=f"{JOBS}/{response.json()['id']}/cancel")  # the queue has a limit
        else:
            assert response.status_code in (404, 422)
            assert all(is_in(body, fault["loc"]) for fault in response.json().get("detail", ())), response.text

    test()
