"""The HTTP server of a replica: its secret, what reaches the engine, and how it stops."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from tandem.cluster.engine.requests.completions import Completions
from tandem.cluster.engine.requests.headers import (
    DIGEST_HEADER,
    MODEL_HEADER,
    REPLICA_HEADER,
    STOPPING_HEADER,
    TOKEN_HEADER,
    VERSION_HEADER,
)
from tandem.cluster.engine.requests.vllm_routes import ANNOTATOR, REQUEST
from tandem.cluster.engine.server import EngineServer

CHAT = "/v1/chat/completions"
BODY = {"messages": [], "temperature": 0.5}
OK = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}


@asynccontextmanager
async def served(serve):
    """A server of completions that `serve` answers, and a client with its token."""
    server = EngineServer(Completions(serve), "replica-1")
    address = await server.start("127.0.0.1")
    pinned = {DIGEST_HEADER: "d2", VERSION_HEADER: "2", MODEL_HEADER: "team/project/agent"}
    async with httpx.AsyncClient(
        base_url=f"http://{address.host}:{address.port}", headers={**pinned, TOKEN_HEADER: address.token}, timeout=60
    ) as client:
        yield server, client
    await server.stop(0)


async def answer(digest, scope, receive, send):
    await send(OK)
    await send({"type": "http.response.body", "body": scope[ANNOTATOR].body(b'{"choices": [{}]}')})


def test_a_request_reaches_the_engine_completed_and_its_answer_names_the_version():
    seen = {}

    async def serve(digest, scope, receive, send):
        seen.update(scope, digest=digest)
        await answer(digest, scope, receive, send)

    async def scenario():
        async with served(serve) as (_, client):
            return await client.post(CHAT, json=BODY, headers={"X-Data-Parallel-Rank": "1", "x-request-id": "r"})

    response = asyncio.run(scenario())
    assert response.headers[REPLICA_HEADER] == "replica-1" and STOPPING_HEADER not in response.headers
    assert response.json()["model"] == "team/project/agent"
    assert response.json()["choices"] == [{"policy_version": 2, "sampled_with": {"temperature": 0.5}}]
    assert seen["digest"] == "d2" and seen[REQUEST]["model"] == "policy-d2" and seen[REQUEST]["logprobs"] is True
    # Other headers could steer the shared engine.
    assert {name for name, _ in seen["headers"]} == {b"accept", b"content-type", b"x-request-id"}


@pytest.mark.parametrize("token", ["", "x", "\u00e9"])
def test_a_caller_without_the_token_is_refused(token):
    async def scenario():
        async with served(answer) as (_, client):
            return await client.post(CHAT, json=BODY, headers={TOKEN_HEADER: token.encode()})

    response = asyncio.run(scenario())
    assert response.status_code == 401
    assert REPLICA_HEADER not in response.headers


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("GET", CHAT), ("POST", "/v1/load_lora_adapter")])
def test_the_engine_has_no_other_routes(method, path):
    async def scenario():
        async with served(answer) as (_, client):
            return await client.request(method, path)

    assert asyncio.run(scenario()).status_code == 404


def test_a_body_that_cannot_be_read_is_refused():
    async def scenario():
        async with served(answer) as (_, client):
            return await client.post(CHAT, content=b'{"n": ' + b"9" * 30 + b"}")

    response = asyncio.run(scenario())
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"


def test_an_engine_that_fails_answers_with_its_name():
    async def serve(digest, scope, receive, send):
        raise KeyError("secret")

    async def scenario():
        async with served(serve) as (_, client):
            return await client.post(CHAT, json=BODY)

    response = asyncio.run(scenario())
    assert (response.status_code, response.headers[REPLICA_HEADER]) == (500, "replica-1")
    assert "secret" not in response.text


def test_a_failure_after_the_answer_leaves_the_connection_open():
    """vLLM's application raises its unexpected errors again once it has answered with them."""

    async def serve(digest, scope, receive, send):
        await answer(digest, scope, receive, send)
        raise KeyError("oops")

    async def scenario():
        async with served(serve) as (server, client):
            for _ in range(3):
                assert (await client.post(CHAT, json=BODY)).status_code == 200
                assert server._server.num_connections == 1

    asyncio.run(scenario())


def test_a_client_who_leaves_is_a_disconnect():
    async def scenario():
        left = asyncio.Event()

        async def serve(digest, scope, receive, send):
            await send({**OK, "headers": [(b"content-type", b"text/event-stream")]})
            await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
            assert (await receive())["type"] == "http.disconnect"
            left.set()

        async with served(serve) as (_, client), client.stream("POST", CHAT, json=BODY) as response:
            async for event in response.aiter_lines():
                assert event == "data: {}"
                break
            await response.aclose()
            await asyncio.wait_for(left.wait(), 60)

    asyncio.run(scenario())


def test_a_stopping_server_ends_what_it_has_begun_and_takes_nothing_more():
    async def scenario():
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def serve(digest, scope, receive, send):
            begun.set()
            await may_end.wait()
            await answer(digest, scope, receive, send)

        async with served(serve) as (server, client):
            first = asyncio.create_task(client.post(CHAT, json=BODY))
            await begun.wait()
            stopping = asyncio.create_task(server.stop(60))
            await asyncio.sleep(0)
            refused = await client.post(CHAT, json=BODY)
            assert not stopping.done()
            may_end.set()
            answered = await first
            await stopping
            with pytest.raises(httpx.ConnectError):
                await client.post(CHAT, json=BODY)
            return answered, refused

    answered, refused = asyncio.run(scenario())
    assert answered.status_code == 200
    assert (refused.status_code, refused.headers[STOPPING_HEADER]) == (503, "1")
