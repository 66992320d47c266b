import json
import time

import openai
import pytest
from openai import OpenAI
from waiting import wait_until

from tandem.cluster.engine.requests.chat.answers import Annotator
from tandem.cluster.engine.requests.chat.fields import fill_in_defaults
from tandem.cluster.engine.requests.request_checks import BadRequestError
from tandem.cluster.errors import AdapterUnavailableError, EngineDeadError
from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.api.services import Services

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "1 + 6 = ?"}]
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "policy-d1",
    "prompt_token_ids": [5, 6],
    "choices": [
        {
            "index": i,
            "message": {"role": "assistant", "content": "7"},
            "finish_reason": "stop",
            "token_ids": [8, 424],
            "logprobs": {
                "content": [
                    {"token": "token_id:8", "logprob": -0.5, "bytes": None, "top_logprobs": []},
                    {"token": "token_id:424", "logprob": -0.1, "bytes": None, "top_logprobs": []},
                ]
            },
        }
        for i in range(2)
    ],
}


@pytest.fixture
def trained(store, add_job, claim, model):
    """The model with versions 1 (digest d1) and 2 (d2)."""
    for step in (1, 2):
        add_job(store.models.get(model["id"], "team"))
        store.claims.complete(claim(), PolicyVersion(model["id"], step, f"d{step}"), {})
    return model


@pytest.fixture
def with_deadline(app, services):
    def with_deadline(seconds):
        deadlines = services.config.deadlines.model_copy(update={"inference_s": seconds})
        config = services.config.model_copy(update={"deadlines": deadlines})
        app.state.services = Services(**{**vars(services), "config": config})

    return with_deadline


@pytest.fixture
def client(base_url, key):
    with OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        yield client


def chat(http, model, **options):
    return http.post(CHAT, json={"model": model, "messages": MESSAGES, **options})


def test_an_answer_says_which_replica_of_the_engine_made_it(http, engine, trained):
    engine.answers(ANSWER)
    engine.headers["x-engine-replica"] = "ab12cd34"
    assert chat(http, "team/project/agent").headers["x-engine-replica"] == "ab12cd34"
    documented = http.get("/openapi.json").json()["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]
    assert set(documented["headers"]) == {"x-policy-version", "x-policy-digest", "x-engine-replica"}


@pytest.mark.parametrize(
    ("name", "step", "digest"),
    [
        ("team/project/agent", 2, "d2"),
        ("team/project/agent:step2", 2, "d2"),
        ("team/project/agent:step1", 1, "d1"),
        ("team/project/agent:step0", 0, "0" * 64),
        ("wandb-artifact:///team/project/agent", 2, "d2"),
        ("wandb-artifact:///team/project/agent:step1", 1, "d1"),
        ("tandem/tiny", 0, "0" * 64),
    ],
)
def test_a_name_is_pinned_to_a_version(http, engine, trained, name, step, digest):
    engine.answers(ANSWER)
    response = chat(http, name)
    assert response.status_code == 200
    assert (response.headers["x-policy-version"], response.headers["x-policy-digest"]) == (str(step), digest)
    [(base_model, method, path, headers, _, asked_digest)] = engine.asked
    assert (base_model, method, path, asked_digest) == ("tandem/tiny", "POST", CHAT, digest)
    assert set(headers) == {"content-type", "x-request-id", "x-policy-version", "x-requested-model", "x-charged-to"}
    assert headers["x-request-id"].startswith(response.headers["x-request-id"])
    body = response.json()
    assert (body["model"], body["policy_version"]) == (name, step)
    for choice in body["choices"]:
        assert choice["policy_version"] == step
        assert choice["prompt_token_ids"] == [5, 6]
        assert choice["token_ids"] == [8, 424]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("team/project/agent:step3", "hasn't been trained yet"),
        ("team/project/agent:step1", "agent:step1: it was deleted"),
        ("team/project/agent:step01", "There is no model"),
        ("team/project/agent:latest", "There is no model"),
        ("team/project/agent:step99999999999999999999", "There is no model"),
        ("team/project/agent:step\u0661", "There is no model"),
        ("team/project/other", "no model team/project/other"),
        ("others/project/agent", "There is no model"),
        ("agent", "base model: tandem/tiny"),
        ("", "There is no model"),
        ("tandem/tiny:step1", "There is no model"),
        ("team/project/agent\x00", "There is no model"),
    ],
)
def test_names_that_mean_nothing_are_not_found(http, engine, trained, name, message):
    http.request("DELETE", f"/v1/preview/models/{trained['id']}/checkpoints", json={"steps": [1]})
    response = chat(http, name)
    assert response.status_code == 404
    error = response.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("not_found_error", "model")
    assert engine.asked == []


def test_logprobs_and_token_ids_come_unless_declined():
    said_nothing = {"logprobs": True, "top_logprobs": 0, "return_token_ids": True}
    assert fill_in_defaults({}, is_chat=True) == said_nothing
    nulls = {"logprobs": None, "top_logprobs": None, "return_token_ids": None}
    assert fill_in_defaults(nulls, is_chat=True) == said_nothing
    assert fill_in_defaults({"top_logprobs": 5}, is_chat=True) == {**said_nothing, "top_logprobs": 5}
    declined = {"logprobs": False, "return_token_ids": False}
    assert fill_in_defaults(declined, is_chat=True) == declined


@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize("field", ["priority", "request_id", "session_id", "kv_transfer_params", "ec_transfer_params"])
def test_fields_that_act_on_an_engine_of_others_are_refused(is_chat, field):
    assert fill_in_defaults({field: None}, is_chat) == fill_in_defaults({}, is_chat) | {field: None}
    with pytest.raises(BadRequestError) as refused:
        fill_in_defaults({field: -5}, is_chat)
    assert refused.value.param == field
    assert fill_in_defaults({"prompt": "a"}, is_chat=False) == {"prompt": "a", "logprobs": 0, "return_token_ids": True}
    assert fill_in_defaults({"logprobs": 3}, is_chat=False)["logprobs"] == 3


def test_what_the_client_says_reaches_the_engine(http, engine, trained):
    engine.answers(ANSWER)
    tools = [{"type": "function", "function": {"name": "look"}}]
    chat(http, "team/project/agent", n=2, temperature=0.7, tools=tools, seed=3, extra=None)
    asked = engine.asked[0][4]
    assert {"n": 2, "temperature": 0.7, "tools": tools, "seed": 3, "logprobs": True}.items() <= asked.items()
    http.post("/v1/completions", json={"model": "team/project/agent", "prompt": [5, 6]})
    assert engine.asked[1][2] == "/v1/completions"
    assert engine.asked[1][4]["logprobs"] == 0


def test_openai_s_client_reads_an_answer(client, engine, trained):
    engine.answers(ANSWER)
    answer = client.chat.completions.create(model="team/project/agent", messages=MESSAGES)
    assert answer.model == "team/project/agent"
    assert [choice.policy_version for choice in answer.choices] == [2, 2]
    assert [token.logprob for token in answer.choices[0].logprobs.content] == [-0.5, -0.1]
    # Clients keep only the Choice of a response, so it must contain everything that training needs.
    kept = json.loads(answer.choices[0].model_dump_json())
    assert (kept["policy_version"], kept["token_ids"], kept["prompt_token_ids"]) == (2, [8, 424], [5, 6])


def test_numbers_that_json_has_not_never_leave(http, engine, trained):
    text = json.dumps(ANSWER).replace("-0.5", "-Infinity").replace("-0.1", "NaN")
    engine.chunks = [text.encode()]
    content = chat(http, "team/project/agent").json()["choices"][0]["logprobs"]["content"]
    assert [token["logprob"] for token in content] == [-9999.0, -9999.0]


def delta(text, **chunk):
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "policy-d2",
        "choices": choices,
        **chunk,
    }


def test_a_stream_is_annotated(client, engine, trained):
    events = [delta("", prompt_token_ids=[5, 6]), *(delta(text) for text in ("sie", "ben \n\n", "七"))]
    texts = [b"data: " + json.dumps(e, ensure_ascii=False).encode() + b"\n\n" for e in events]
    engine.streams(*texts[:2], b"".join(texts[2:]), b"data: [DONE]\n\n")
    with client.chat.completions.create(model="team/project/agent", messages=MESSAGES, stream=True) as stream:
        chunks = list(stream)
    assert stream.response.headers["x-policy-version"] == "2"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "sieben \n\n七"
    assert {(chunk.model, chunk.choices[0].policy_version) for chunk in chunks} == {("team/project/agent", 2)}
    assert all(chunk.choices[0].sampled_with == {} for chunk in chunks)
    assert chunks[0].choices[0].prompt_token_ids == [5, 6]
    wait_until(lambda: engine.closed == 1)  # shortly after the client receives the last chunk


def test_what_is_no_completion_passes_unchanged():
    annotator = Annotator("name", "policy-d", 3, {})
    assert annotator.event(b": ping\nevent: x\ndata: [DONE]") == b": ping\nevent: x\ndata: [DONE]"
    assert annotator.body(b"not json") == b"not json"
    assert annotator.body(b"[1]") == b"[1]"


def test_the_engine_s_refusals_are_passed_on_in_the_client_s_words(client, engine, trained):
    message = "max_tokens is too large for policy-d2"
    engine.answers({"error": {"message": message, "type": "BadRequestError", "param": "max_tokens", "code": 400}}, 400)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="team/project/agent", messages=MESSAGES, max_tokens=9000)
    assert caught.value.body["message"] == "max_tokens is too large for team/project/agent"
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineDeadError("The engine died while it answered."), 503, "engine_unavailable"),
        (AdapterUnavailableError("It can't be loaded."), 503, "engine_unavailable"),
        (KeyError("secret"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_a_failing_engine_is_an_error_in_openai_s_shape(client, engine, trained, error, status, code, streams):
    engine.chunks = [error]
    if streams:
        engine.streams(b"data: " + json.dumps(delta("a")).encode() + b"\n\n", error)
    with pytest.raises(openai.APIError) as caught:
        list(client.chat.completions.create(model="team/project/agent", messages=MESSAGES, stream=streams))
    assert caught.value.code == code
    assert getattr(caught.value, "status_code", status) == status
    assert "secret" not in str(caught.value)
    assert engine.closed == 1


def test_an_engine_that_says_nothing_is_unavailable(http, services, trained, monkeypatch):
    async def silence(*_):
        for item in ():
            yield item

    monkeypatch.setattr(services.engine, "http", silence)
    response = chat(http, "team/project/agent")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"


@pytest.mark.parametrize("content", [b"Internal Server Error", b"", b"[]", b'{"detail": "x"}'])
def test_a_bare_error_of_the_engine_gets_words(http, engine, trained, content):
    engine.status, engine.chunks = 500, [content]
    response = chat(http, "team/project/agent")
    assert response.status_code == 503
    error = response.json()["error"]
    assert error["code"] == "engine_failed"
    assert response.headers["x-request-id"] in error["message"]


def test_a_base_model_that_is_starting_asks_to_come_back(http, services):
    services.base_models.append("late/base")
    response = chat(http, "late/base")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert "still starting" in response.json()["error"]["message"]
    services.base_models.remove("late/base")


@pytest.mark.parametrize("streams", [False, True])
def test_the_deadline_ends_the_generation(client, engine, trained, with_deadline, streams):
    with_deadline(0.3)
    engine.chunks = [60.0]
    if streams:
        engine.streams(b"data: " + json.dumps(delta("a")).encode() + b"\n\n", 60.0)
    started = time.monotonic()
    with pytest.raises(openai.APIError) as caught:
        list(client.chat.completions.create(model="team/project/agent", messages=MESSAGES, stream=streams))
    assert time.monotonic() - started < 50
    assert caught.value.code == "deadline_exceeded"
    assert engine.closed == 1
    if not streams:
        assert caught.value.status_code == 504
        assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_hangs_up_ends_the_generation(connect, hang_up, engine, trained, streams):
    engine.chunks = [120.0]
    if streams:
        engine.streams(b"data: " + json.dumps(delta("a")).encode() + b"\n\n", 120.0)
    body = json.dumps({"model": "team/project/agent", "messages": MESSAGES, "stream": streams}).encode()
    connection = connect(CHAT, f"Content-Length: {len(body)}")
    connection.sendall(body)
    wait_until(lambda: engine.asked)
    if streams:
        with connection.makefile("rb") as answer:
            assert any(line.startswith(b"data: ") for line in answer)
    assert engine.closed == 0
    hang_up(connection)
    wait_until(lambda: engine.closed == 1)


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        (b"{", ["body"]),
        (b"[]", ["body"]),
        (b"{}", ["body", "model"]),
        (b'{"model": null}', ["body", "model"]),
        (b'{"model": ["a"]}', ["body", "model"]),
        (b'{"model": "tandem/tiny", "temperature": NaN}', ["body", "temperature"]),
        (b'{"model": "tandem/tiny", "messages": [{"content": -Infinity}]}', ["body", "messages", 0, "content"]),
    ],
)
def test_a_malformed_request_says_where(http, engine, raw, place):
    for path in (CHAT, "/v1/completions"):
        response = http.post(path, content=raw)
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == place
        assert response.json()["error"]["message"].startswith(".".join(map(str, place)))
    assert engine.asked == []


def test_the_names_one_can_ask_for(client, trained):
    assert [m.id for m in client.models.list()] == ["tandem/tiny", "team/project/agent"]


@pytest.mark.parametrize(("sent", "passed_on"), [(TRACEPARENT, TRACEPARENT), ("00-forged", None), (None, None)])
def test_the_trace_of_a_client_is_passed_on_to_the_engine(http, engine, model, sent, passed_on):
    engine.answers(ANSWER)
    http.headers.update({"traceparent": sent} if sent else {})
    assert chat(http, "team/project/agent").status_code == 200
    assert engine.asked[0][3].get("traceparent") == passed_on
