"""The gateway of the proxies answers as the API does, and leaves everything else to it."""

import asyncio
import json
import subprocess
import sys

import anyio
import httpx
import pytest
from recorded_metrics import recorded
from serve_fakes import Engine
from starlette.responses import PlainTextResponse

from tandem.cluster.engine.requests.protocols import PATHS
from tandem.cluster.engine.samples.samples_app import FETCH_PATH, START_PATH
from tandem.serve.api.anthropic_errors import AnthropicErrors
from tandem.serve.app.proxies.inference_gateway import InferenceGateway
from tandem.serve.app.proxy_middleware import ProxyAnswers
from tandem.serve.keys import create_key
from tandem.serve.tinker.sampling.sample_ids import SampleId
from tandem.serve.tinker.sampling.sample_routes import ASAMPLE, RETRIEVE
from tandem.serve.tinker.store.store import TinkerStore

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "1 + 6 = ?"}]
NAME, ZERO = "team/project/agent", "0" * 64
ANSWER = {"model": "policy-x", "prompt_token_ids": [5], "choices": [{"index": 0, "message": {"content": "7"}}]}
SHOWN = ("x-policy-version", "x-policy-digest", "content-type", "retry-after", "www-authenticate", "accept-encoding")


class Engines(Engine):
    """The fake engine in place of connections."""

    are_there = True

    async def exist(self):
        return self.are_there


@pytest.fixture
def engine():
    return Engines()


@pytest.fixture
def gateway(services, engine):
    """The gateway in a proxy without the API."""
    config = services.config.model_copy(update={"store_url": str(services.store.database._engine.url)})
    gateway = InferenceGateway(PlainTextResponse("the API"), lambda: config.model_dump_json())
    gateway._connections = engine
    return gateway


async def asked(app, path=CHAT, method="POST", **request):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as client:
        return await client.request(method, path, **request)


def ask(app, path=CHAT, method="POST", **request):
    return anyio.run(lambda: asked(app, path, method, **request))


def body(**changes):
    return {"json": {"model": NAME, "messages": MESSAGES, **changes}}


def said(response):
    """Return an answer but for the id of its request."""
    return {name: value for name, value in response.json().items() if name != "request_id"}


REQUESTS = {
    "whole": body(),
    "frozen": body(model=f"{NAME}:step0"),
    "base": body(model="tandem/tiny"),
    "missing": body(model="team/project/other"),
    "foreign": body(model="others/project/agent"),
    "future": body(model=f"{NAME}:step7"),
    "no model": {"json": {"messages": MESSAGES}},
    "no json": {"content": b"{"},
    "no object": {"content": b"[]"},
    "not finite": {"content": b'{"model": "tandem/tiny", "temperature": NaN}'},
    "too large": {"content": b'{"model": "' + b"x" * 6000 + b'"}'},
    "coding": {"content": b"{}", "headers": {"content-encoding": "br"}},
    "broken coding": {"content": b"{}", "headers": {"content-encoding": "gzip"}},
    "bad option": body(temperature=10**30),
}


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_the_gateway_answers_as_the_api(http, app, configure, engine, gateway, model, key, request_, path):
    configure("limits", max_request_bytes=5000)
    gateway._published = lambda text=gateway._published(): json.dumps(
        json.loads(text) | {"limits": json.loads(text)["limits"] | {"max_request_bytes": 5000}}
    )
    engine.answers(ANSWER)
    of_api = http.post(path, **request_)
    by_api, engine.asked = engine.asked, []
    headers = {"Authorization": f"Bearer {key}", **request_.get("headers", {})}
    of_gateway = ask(AnthropicErrors(gateway), path, **{**request_, "headers": headers})
    assert (of_gateway.status_code, said(of_gateway)) == (of_api.status_code, said(of_api))
    assert [of_gateway.headers.get(name) for name in SHOWN] == [of_api.headers.get(name) for name in SHOWN]
    assert of_gateway.headers["x-request-id"]
    assert [one[:3] + one[4:] for one in engine.asked] == [one[:3] + one[4:] for one in by_api]


def test_a_stream_passes(engine, gateway, model, key):
    event = {"model": "policy-x", "choices": [{"index": 0, "delta": {"content": "7"}}]}
    engine.streams(b"data: " + json.dumps(event).encode() + b"\n\n", b"data: [DONE]\n\n")
    response = ask(gateway, **body(stream=True), headers={"X-Auth-Token": key, "x-request-id": "mine"})
    first, done = response.text.strip().split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["policy_version"] == 0
    assert (done, response.headers["x-request-id"]) == ("data: [DONE]", "mine")
    assert response.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer tdm_wrong"}, {"Authorization": "Basic x"}])
def test_a_request_without_a_valid_key_is_refused_before_its_body_is_read(http, engine, gateway, headers):
    async def unread():
        raise AssertionError("the body is read")
        yield b""

    of_api = http.post(CHAT, **body(), headers={"Authorization": "", **headers})
    of_gateway = ask(gateway, content=unread(), headers=headers)
    assert (of_gateway.status_code, of_gateway.json()) == (of_api.status_code, of_api.json())
    assert of_gateway.status_code == 401 and engine.asked == []


def test_a_revoked_key_and_a_new_version_take_effect_at_once(store, engine, gateway, model, key, add_job, claim):
    from tandem.cluster.jobs.job import PolicyVersion
    from tandem.serve.keys import revoke_key

    engine.answers(ANSWER)
    authorized = {"Authorization": f"Bearer {key}"}
    assert ask(gateway, **body(), headers=authorized).headers["x-policy-digest"] == ZERO
    add_job(store.models.get(model["id"], "team"))
    store.claims.complete(claim(), PolicyVersion(model["id"], 1, "d1"), {})
    assert ask(gateway, **body(), headers=authorized).headers["x-policy-digest"] == "d1"
    revoke_key(store, key)
    assert ask(gateway, **body(), headers=authorized).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/models"), ("GET", CHAT), ("POST", f"{CHAT}/"), ("POST", "/v1/preview/models")]
)
def test_everything_else_is_the_api_s(gateway, method, path):
    assert ask(gateway, path, method).text == "the API"


def test_the_api_answers_while_there_is_no_configuration_or_no_engine(engine, gateway, key):
    engine.are_there = False
    assert ask(gateway, **body()).text == "the API"
    assert ask(InferenceGateway(PlainTextResponse("the API"), lambda: None), **body()).text == "the API"
    unreadable = InferenceGateway(PlainTextResponse("the API"), lambda: "{}}")
    assert ask(unreadable, **body()).text == "the API"


def test_a_changed_configuration_replaces_the_old_one(engine, gateway, model, key, monkeypatch):
    monkeypatch.setattr("tandem.serve.app.proxies.inference_gateway.REFRESH_S", 0.0)
    engine.answers(ANSWER)
    authorized = {"Authorization": f"Bearer {key}"}
    assert ask(gateway, **body(), headers=authorized).status_code == 200
    text = json.loads(gateway._published())
    text["limits"]["max_request_bytes"] = 5
    gateway._published = lambda: json.dumps(text)

    async def until_refused():
        with anyio.fail_after(60):
            while (await asked(gateway, **body(), headers=authorized)).status_code != 413:
                await anyio.sleep(0.01)

    anyio.run(until_refused)


def test_an_unexpected_error_says_under_which_id(store, engine, gateway, model):
    key = create_key(store, "other", "team")
    engine.chunks = [KeyError("secret")]
    response = ask(ProxyAnswers(gateway), **body(), headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] in response.json()["error"]["message"]
    assert "secret" not in response.text


def test_a_proxy_starts_without_the_gateway_and_loads_it_with_its_first_request():
    code = """if True:
        import asyncio, sys
        from tandem.serve.app.proxy_middleware import middleware
        lazy = middleware()[0].cls
        late = {"sqlalchemy", "tandem.cluster.config", "tandem.serve.app.proxies.inference_gateway"}
        assert not late & set(sys.modules)

        async def main():
            seen = []

            async def api(scope, receive, send):
                seen.append(scope["path"])

            proxy = lazy(api)
            await proxy({"type": "http", "method": "GET", "path": "/v1/models"}, None, None)
            await proxy._loading
            await proxy({"type": "http", "method": "GET", "path": "/v1/models"}, None, None)
            print(len(seen), type(proxy._next).__name__)

        asyncio.run(main())
    """
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["2", "InferenceGateway"]


def test_completions_of_the_gateway_are_counted(gateway, engine, key, model):
    engine.answers(ANSWER)
    with recorded() as metrics:
        ask(gateway, **body(), headers={"Authorization": f"Bearer {key}"})
        ask(gateway, **body())
        ask(gateway, "/v1/preview/models", "GET")  # left to the API, which counts it
    labels = {"route": CHAT, "method": "POST", "answered_by": "gateway"}
    assert metrics.of("tandem_http_requests_total", **labels, status="200") == [1.0]
    assert metrics.of("tandem_http_requests_total", **labels, status="401") == [1.0]
    assert metrics.total("tandem_http_requests_total") == 2


PROMISE = {"sampling_session_id": "s", "seq_id": 0, "sampling_params": {}, "prompt": {"chunks": []}}


class SampleReplica(Engines):
    """Answers for samples as a test says, and hangs on the requests that it names."""

    def __init__(self):
        super().__init__()
        self.answer, self.asked_for, self.left = (200, b'{"num_samples": 2}'), [], asyncio.Event()

    async def http(self, base_model, method, path, headers, body, digest, replica=None):
        self.asked_for.append((path, replica, digest, dict(headers)))
        try:
            if self.answer is None:
                await asyncio.sleep(1000)
        except asyncio.CancelledError:
            self.left.set()
            raise
        status, content = self.answer
        yield status, [("x-engine-replica", "r1")]
        yield content


@pytest.fixture
def replica(gateway):
    gateway._connections = SampleReplica()
    return gateway._connections


@pytest.fixture
def sampler(services):
    store = TinkerStore(services.store.database, services.config.tinker)
    session = store.sessions.create("team", None, tags=[], user_metadata={}, sdk_version="0.38.0", idempotency_key=None)
    return store.samplers.create("team", None, session.id, 0, "tandem/tiny", None).id


def test_samples_are_started_and_fetched_without_the_api(gateway, replica, sampler, key):
    sdk = {"X-API-Key": f"tml-{key}"}
    started = ask(gateway, ASAMPLE, json={**PROMISE, "sampling_session_id": sampler}, headers=sdk)
    assert started.status_code == 200 and len(started.json()["sample_sequence_ids"]) == 2
    id = started.json()["request_id"]
    replica.answer = 200, b"protobuf"
    sdk |= {"Accept": "application/x-protobuf"}
    fetched = ask(gateway, RETRIEVE, json={"request_id": id}, headers=sdk)
    assert (fetched.status_code, fetched.content) == (200, b"protobuf")
    assert fetched.headers["content-type"] == "application/x-protobuf"
    assert [(path, name) for path, name, *_ in replica.asked_for] == [(START_PATH, None), (FETCH_PATH, "r1")]
    replica.answer = 429, b'{"error": "many"}'
    refused = ask(gateway, ASAMPLE, json={**PROMISE, "sampling_session_id": sampler}, headers=sdk)
    assert (refused.status_code, refused.headers["x-tinker-sampling-backpressure"]) == (429, "1")
    assert ask(gateway, ASAMPLE, json=PROMISE, headers=sdk).status_code == 404
    assert ask(gateway, RETRIEVE, json={"request_id": id}).status_code == 401
    assert ask(gateway, RETRIEVE, json={"x": "sample/", "request_id": "call/y/1"}, headers=sdk).status_code == 404


def test_other_results_are_left_to_the_api_with_their_body(gateway, replica, key):
    async def api(scope, receive, send):
        message = await receive()
        await PlainTextResponse(message["body"])(scope, receive, send)

    gateway._app = api
    response = ask(gateway, RETRIEVE, json={"request_id": "call/run/1"}, headers={"X-API-Key": f"tml-{key}"})
    assert response.json() == {"request_id": "call/run/1"}
    assert not replica.asked_for


def test_a_client_that_leaves_isnt_waited_for(gateway, replica, sampler, key):
    replica.answer = None
    id = str(SampleId("tandem/tiny", "r1", sampler, 0))

    async def scenario():
        messages = [{"type": "http.request", "body": json.dumps({"request_id": id}).encode(), "more_body": False}]
        leaves = asyncio.Event()

        async def receive():
            if messages:
                return messages.pop()
            await leaves.wait()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "POST", "path": RETRIEVE, "query_string": b"", "root_path": ""}
        scope["headers"] = [(b"x-api-key", f"tml-{key}".encode())]
        answering = asyncio.create_task(gateway(scope, receive, None))
        while not replica.asked_for:
            await asyncio.sleep(0.01)
        leaves.set()
        await answering
        assert replica.left.is_set()

    asyncio.run(scenario())
