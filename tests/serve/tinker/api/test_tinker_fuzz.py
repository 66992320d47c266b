"""Requests of broken clients: each is accepted, or refused as the user's error with its place, and leaves nothing.

A call whose number can be read is accepted, and its result is the error.
"""

import copy
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from refusals import assert_one_shape, everything_held
from sample_engines import SampleEngines

from tandem.cluster.calls.wire import messages
from tandem.serve.keys import create_key
from tandem.serve.tinker.store.outcomes import Failed

PROTOBUF = "application/x-protobuf"
ORDERED = ("optim_step", "save_weights", "save_weights_for_sampler", "load_weights", "forward", "forward_backward")
JUNK = (
    None,
    True,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    10**30,
    1e300,
    "",
    "x",
    "\x00",
    "../x",
    "tinker://",
    [],
    [[]],
    {},
    {"": 0},
)
numbers = itertools.count(1000)  # all of one length in protobuf


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


def bodies(session, run):
    """Return a right body of every route that takes JSON."""
    call = {"model_id": run, "seq_id": next(numbers)}
    tensor = {"data": [2, 3], "dtype": "int64", "shape": [2]}
    datum = {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
        "loss_fn_inputs": {"target_tokens": tensor},
    }
    sent = {"data": [datum, copy.deepcopy(datum)], "loss_fn": "cross_entropy", "loss_fn_config": {}}
    adam = {
        "learning_rate": 1e-4,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-12,
        "weight_decay": 0.0,
        "grad_clip_norm": 1.0,
    }
    about = {"sdk_version": "0.38.0", "session_id": session}
    return {
        "client/config": {"sdk_version": "0.38.0"},
        "client/dynamic_config": {"sdk_version": "0.38.0"},
        "create_session": {"tags": ["a"], "user_metadata": {"a": 1}, "sdk_version": "0.38.0", "type": "create_session"},
        "session_heartbeat": {"session_id": session, "type": "session_heartbeat"},
        "telemetry": {"events": [{"a": 1}], "platform": "linux", "process_uuid": "u", **about},
        f"sessions/{session}/finish": {"reason": {"type": "success"}, "detail": "done"},
        "create_model": {
            "session_id": session,
            "model_seq_id": next(numbers),
            "base_model": "tandem/tiny",
            "user_metadata": {"a": "b"},
            "lora_config": {"rank": 8, "seed": 1, "train_unembed": True, "train_mlp": True, "train_attn": True},
            "optimizer_config": {"type": "adamw"},
            "type": "create_model",
        },
        "get_info": {"model_id": run, "type": "get_info"},
        "unload_model": {"model_id": run, "type": "unload_model"},
        "forward_backward": {**call, "forward_backward_input": sent, "type": "forward_backward"},
        "forward": {**call, "forward_input": sent, "type": "forward"},
        "optim_step": {**call, "adam_params": adam, "type": "optim_step"},
        "save_weights": {**call, "path": "a", "ttl_seconds": 3600, "overwrite": True, "user_metadata": {"a": "b"}},
        "save_weights_for_sampler": {**call, "path": "a", "kind": "snapshot", "ttl_seconds": 3600},
        "save_weights_external": {**call, "path": "a"},
        "load_weights": {**call, "path": f"tinker://{run}/weights/first", "optimizer": True, "type": "load_weights"},
        "retrieve_future": {"request_id": f"call/{run}/0", "allow_metadata_only": True},
        "cancel_future": {"request_id": f"call/{run}/0"},
        "weights_info": {"tinker_path": f"tinker://{run}/weights/first"},
        "copy_weights": {
            "source_path": f"tinker://{run}/weights/first",
            "destination_project_id": "copies",
            "ttl_seconds": 3600,
        },
        f"training_runs/{run}/checkpoints/weights/first/ttl": {"ttl_seconds": 3600},
        "sessions/search": {"session_id": session, "project_ids": ["a"], "user_metadata": {"a": "b"}, "limit": 5},
        "create_sampling_session": {
            "session_id": session,
            "sampling_session_seq_id": next(numbers),
            "base_model": "tandem/tiny",
            "type": "create_sampling_session",
        },
        "asample": {
            "sampling_session_id": f"{session}:sample:0",
            "seq_id": next(numbers),
            "num_samples": 2,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
            "sampling_params": {"max_tokens": 4, "seed": 1, "stop": ["a"], "temperature": 1, "top_k": -1, "top_p": 1},
            "prompt_logprobs": True,
            "topk_prompt_logprobs": 1,
            "topk_sample_logprobs": 1,
            "target_prompt_logprobs": {"data": [1, 2], "dtype": "int64", "shape": [2, 1]},
            "prompt_alt_tokens_k": 1,
            "prompt_logprobs_last_n": 2,
            "type": "sample",
        },
    }


ROUTES = list(bodies("{session_id}", "{run_id}"))
REFUSED = ("create_custom_loss", "retrieve_futures")
"""Whatever they say."""


def test_every_route_with_a_body_is_sent_wrong_ones(app):
    known = {*ROUTES, *REFUSED, "training_runs/{run_id}/checkpoints/{checkpoint_id}/ttl"}
    for path, operations in app.openapi()["paths"].items():
        for operation in operations.values():
            if path.startswith("/api/v1/") and "requestBody" in operation:
                assert path.removeprefix("/api/v1/") in known


def places(value, place=()):
    """Yield every place in a JSON value but the value itself."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*place, key)
        if isinstance(item, dict | list):
            yield from places(item, (*place, key))


def spoil(body, place, junk, is_left_out):
    holder = body
    for key in place[:-1]:
        holder = holder[key]
    if is_left_out:
        del holder[place[-1]]
    else:
        holder[place[-1]] = junk


@pytest.fixture
def services(services):
    return replace(services, engine=SampleEngines())


@pytest.fixture
def session(session, post):
    """A session with a sampling client."""
    post("create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tandem/tiny")
    return session


@pytest.fixture
def run(run, post, executor):
    """A model with a saved state."""
    post("save_weights", model_id=run, seq_id=1, path="first")
    while executor.step():
        pass
    return run


@pytest.fixture
def send(http, store_url, services, tinker_store, configure, monkeypatch):
    """Send a request. Check its answer and, where it was refused, that nothing is left."""
    configure("tinker", hold_s=0.01)
    monkeypatch.setattr("tandem.serve.tinker.api.errors.HOLD_S", 0.01)
    artifacts = services.config.home / "artifacts"

    def send(route, content, **headers):
        before = everything_held(store_url, artifacts)
        method = "PUT" if route.endswith("/ttl") else "POST"
        response = http.request(method, f"/api/v1/{route}", content=content, headers=headers)
        rows, files = everything_held(store_url, artifacts)
        assert response.status_code < 500 and response.status_code != 409, response.text
        if response.status_code >= 400:
            assert (rows, files) == before
            assert_refusal(response, route)
        elif route in ORDERED and isinstance(outcome := outcome_of(response), Failed):
            assert outcome.category == "user" and 8 < len(outcome.message) < 1000
            assert files == before[1]
        return response

    def outcome_of(response):
        return tinker_store.calls.outcome(response.json()["request_id"], "team")

    return send


def assert_refusal(response, route):
    if response.status_code == 408 and route == "retrieve_future":
        assert response.json()["request_id"], "a 5xx was hidden"
        return
    error = assert_one_shape(response, response.status_code)
    if response.status_code == 422:
        assert error["param"], error


@pytest.mark.parametrize("route", ROUTES)
def test_right_and_spoilt_bodies(route, send, session, run):
    route = route.format(session_id=session, run_id=run)
    right = send(route, json.dumps(bodies(session, run)[route]), **{"Content-Type": "application/json"})
    assert right.status_code == 422 if route == "cancel_future" else right.is_success, right.text
    kinds = sorted(places(bodies(session, run)[route]), key=str)

    @quick(20)
    @given(st.sampled_from(kinds), st.sampled_from(JUNK), st.booleans())
    def test(place, junk, is_left_out):
        body = bodies(session, run)[route]
        spoil(body, place, junk, is_left_out)
        send(route, json.dumps(body), **{"Content-Type": "application/json"})

    test()


def test_bodies_that_are_no_object_of_a_request(send, session, run):
    for content in (b"", b"[]", b"null", b"{", b"\xff", b'{"a": NaN}', b"[" * 10**5, b'{"x": 1}'):
        for route in ROUTES:
            route = route.format(session_id=session, run_id=run)
            status = send(route, content, **{"Content-Type": "application/json"}).status_code
            assert status == 422 or (route, status) == ("asample", 400), (route, content[:9])


def message(run, seq):
    sent = messages.ForwardBackwardRequest(model_id=run, seq_id=seq, loss_fn="importance_sampling")
    datum = sent.data.add()
    datum.model_input.add().encoded_text.tokens = np.arange(3, dtype="<i4").tobytes()
    for name, dtype in (("target_tokens", messages.INT64), ("logprobs", messages.FLOAT32), ("advantages", 1)):
        tensor = datum.loss_fn_inputs[name]
        tensor.dense, tensor.dtype = np.ones(3, "<i8" if name == "target_tokens" else "<f4").tobytes(), dtype
        tensor.shape.append(3)
    return sent


def test_damaged_protobuf(send, run):
    @quick(80)
    @given(st.data())
    def test(data):
        body = bytearray(message(run, next(numbers)).SerializeToString())
        at = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "insert"])):
            case "byte":
                body[at] = data.draw(st.integers(0, 255))
            case "cut":
                del body[at:]
            case "insert":
                body[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        headers = {"Content-Type": PROTOBUF}
        if data.draw(st.booleans()):
            body, headers["Content-Encoding"] = zstandard.compress(bytes(body)), "zstd"
        send("forward_backward", bytes(body), **headers)

    test()


def test_damaged_compression(send, run):
    frame = zstandard.compress(message(run, next(numbers)).SerializeToString())

    @quick(40)
    @given(st.data())
    def test(data):
        body, at = bytearray(frame), data.draw(st.integers(0, 120))
        if data.draw(st.booleans()):
            del body[at:]
        else:
            body[at] = data.draw(st.integers(0, 255))
        send("forward_backward", bytes(body), **{"Content-Type": PROTOBUF, "Content-Encoding": "zstd"})

    test()


def test_bombs(send, run):
    for bomb in (zstandard.compress(bytes(1 << 28)), zstandard.compress(bytes(1 << 20)) * 100):
        response = send("forward_backward", bomb, **{"Content-Type": PROTOBUF, "Content-Encoding": "zstd"})
        assert response.status_code in (413, 422), response.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(value, send, run, tinker_store):
    sent = message(run, next(numbers))
    sent.data[0].loss_fn_inputs["advantages"].dense = np.array([1, value, 1], "<f4").tobytes()
    request_id = send("forward_backward", sent.SerializeToString(), **{"Content-Type": PROTOBUF}).json()["request_id"]
    assert "data[0].loss_fn_inputs.advantages" in tinker_store.calls.outcome(request_id, "team").message


def test_checkpoints_of_others_look_like_checkpoints_that_do_not_exist(send, run, session, post, http, store, executor):
    post("save_weights", model_id=run, seq_id=next(numbers), path="secret")
    while executor.step():
        pass
    http.headers["Authorization"] = f"Bearer {create_key(store, 'k', 'others', 'admin')}"
    own = post("create_session", tags=[], sdk_version="0.38.0")["session_id"]
    mine = post("create_model", session_id=own, model_seq_id=0, base_model="tandem/tiny")["model_id"]
    said = []
    for path in (f"tinker://{run}/weights/secret", f"tinker://{run}/weights/none0", f"tinker://{run}/weights/../x"):
        body = {"path": path, "optimizer": True, "session_id": own, "model_seq_id": next(numbers)}
        response = send("load_weights", json.dumps(body), **{"Content-Type": "application/json"})
        assert response.status_code in (400, 404), response.text
        said.append(response.json()["error"]["message"].replace(path, "PATH"))
    assert said[0] == said[1]
    assert mine
