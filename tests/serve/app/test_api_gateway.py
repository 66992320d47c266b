"""Requests of the Tinker API, and large bodies, from a proxy to replicas of the API, over real connections."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from tandem.cluster.engine.requests.headers import TOKEN_HEADER
from tandem.cluster.engine.server import EngineAddress
from tandem.serve.app.engines.connections import EngineConnections
from tandem.serve.app.proxies import api_gateway
from tandem.serve.app.proxies.api_directory import API
from tandem.serve.app.proxies.api_gateway import ApiGateway
from tandem.serve.app.proxies.api_server import ApiServer
from tandem.serve.tinker.api.errors import RESULTS

NOWHERE = EngineAddress("gone", "127.0.0.1", 1, "token")


class Api:
    """An application that answers with what it was asked."""

    def __init__(self, name):
        self.name, self.num_asked, self.left = name, 0, asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.server = ApiServer(self, name)

    async def __call__(self, scope, receive, send):
        self.num_asked += 1
        body = (await receive())["body"]
        leaving = asyncio.create_task(receive())
        await asyncio.wait([leaving, asyncio.create_task(self.may_answer.wait())], return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            self.left.set()
            return
        leaving.cancel()
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        asked = {"by": self.name, "path": scope["path"], "query": scope["query_string"].decode(), "body": body.decode()}
        await JSONResponse({**asked, "key": headers.get("x-api-key"), "id": headers["x-request-id"]}, 201)(
            scope, receive, send
        )


@asynccontextmanager
async def proxy(num, *more):
    """Replicas of the API, their addresses after `more`, and a client of a proxy before them."""
    async with AsyncExitStack() as stack:
        apis, addresses = [Api(f"r{k}") for k in range(num)], list(more)
        for api in apis:
            addresses.append(await api.server.start("127.0.0.1"))
            stack.push_async_callback(api.server.stop, 0, 0)
        connections = EngineConnections(lambda: {API: list(addresses)}, lambda _, a: addresses.remove(a))
        gateway = ApiGateway(PlainTextResponse("Serve's own way"), connections)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="http://tandem")
        yield apis, addresses, await stack.enter_async_context(client)


def test_a_request_reaches_the_api_as_it_was_sent():
    async def test():
        async with proxy(1, NOWHERE) as (_, addresses, client):
            headers = {"X-API-Key": "tml-1", "X-Request-Id": "mine"}
            answer = await client.post(f"{RESULTS}?a=1", content=b"{}", headers=headers)
            asked = {"by": "r0", "path": RESULTS, "query": "a=1", "body": "{}", "key": "tml-1", "id": "mine"}
            assert (answer.status_code, answer.json()) == (201, asked)
            assert answer.headers.get_list("x-request-id") == ["mine"]
            assert not [name for name in answer.headers if "replica" in name]
            assert NOWHERE not in addresses

    asyncio.run(test())


def test_other_requests_take_serves_own_way():
    async def test():
        async with proxy(1) as (apis, _, client):
            assert (await client.get("/api/v1/healthz")).text == "Serve's own way"
            assert (await client.post("/v1/models", content=b"{}")).text == "Serve's own way"
            assert apis[0].num_asked == 0
        async with proxy(0) as (_, _, client):
            assert (await client.post(RESULTS, content=b"")).text == "Serve's own way"

    asyncio.run(test())


def test_the_port_is_for_proxies_alone():
    async def test():
        async with proxy(1) as (apis, addresses, _):
            url = f"http://127.0.0.1:{addresses[0].port}{RESULTS}"
            async with httpx.AsyncClient() as stranger:
                assert (await stranger.post(url, content=b"{}")).status_code == 401
                assert (await stranger.post(url, content=b"{}", headers={TOKEN_HEADER: "x"})).status_code == 401
            assert apis[0].num_asked == 0

    asyncio.run(test())


def test_a_replica_that_stops_refuses_and_another_answers():
    async def test():
        async with proxy(2) as (apis, _, client):
            apis[0].may_answer.clear()
            held = asyncio.create_task(client.post(RESULTS, content=b"{}"))
            while not (holder := next((api for api in apis if api.num_asked), None)):
                await asyncio.sleep(0.01)
            stopping = asyncio.create_task(holder.server.stop(5, 5))
            await asyncio.sleep(0.1)
            other = next(api for api in apis if api is not holder)
            answers = [(await client.post(RESULTS, content=b"{}")).json()["by"] for _ in range(3)]
            assert answers == [other.name] * 3
            apis[0].may_answer.set()
            assert (await held).json()["by"] == holder.name
            await stopping

    asyncio.run(test())


def test_a_replica_that_dies_while_it_answers_is_a_503():
    async def die(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def test():
        async with await asyncio.start_server(die, "127.0.0.1", 0) as server:
            dying = EngineAddress("r", "127.0.0.1", server.sockets[0].getsockname()[1], "token")
            async with proxy(0, dying) as (_, _, client):
                answer = await client.post(RESULTS, content=b"{}")
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_answer")

    asyncio.run(test())


def test_a_client_that_leaves_is_noticed_by_the_api():
    async def test():
        async with proxy(1) as (apis, addresses, _):
            apis[0].may_answer.clear()
            gateway = ApiGateway(None, EngineConnections(lambda: {API: addresses}, lambda *_: None))
            messages = [{"type": "http.request", "body": b"{}", "more_body": False}, {"type": "http.disconnect"}]

            async def receive():
                if len(messages) == 1:
                    while not apis[0].num_asked:
                        await asyncio.sleep(0.01)
                return messages.pop(0)

            scope = {
                "type": "http",
                "method": "POST",
                "path": RESULTS,
                "raw_path": RESULTS.encode(),
                "query_string": b"",
            }
            headers = [(b"content-length", b"2")]
            await gateway({**scope, "headers": headers}, receive, None)
            await asyncio.wait_for(apis[0].left.wait(), 10)

    asyncio.run(test())


JOBS = "/v1/preview/training-jobs"


class Receiver:
    """An application that reads a body, and says how much had arrived when the client had sent all of it."""

    def __init__(self, reads=True):
        self.reads, self.num_bytes, self.has_left = reads, 0, asyncio.Event()
        self.server = ApiServer(self, "receiver")

    async def __call__(self, scope, receive, send):
        while self.reads:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.has_left.set()
                return
            self.num_bytes += len(message["body"])
            if not message["more_body"]:
                break
        await JSONResponse({"received": self.num_bytes}, 200 if self.reads else 413)(scope, receive, send)


@asynccontextmanager
async def receiver(**options):
    """A replica with a Receiver, and a client of a proxy before it."""
    app = Receiver(**options)
    address = await app.server.start("127.0.0.1")
    gateway = ApiGateway(None, EngineConnections(lambda: {API: [address]}, lambda *_: None))
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="http://tandem") as client:
            yield app, client, gateway
    finally:
        await app.server.stop(0, 0)


@pytest.mark.parametrize("is_known", [True, False], ids=["of known length", "chunked"])
def test_a_large_body_is_passed_on_while_it_arrives(is_known, monkeypatch):
    monkeypatch.setattr(api_gateway, "COLLECTED_BYTES", 1000)

    async def test():
        async with receiver() as (app, client, _):

            async def parts():
                yield b"x" * 100_000
                async with asyncio.timeout(10):
                    while app.num_bytes < 100_000:
                        await asyncio.sleep(0.001)
                yield b"y" * 300_000

            headers = {"content-length": "400000"} if is_known else {}
            for _ in range(2):  # over the same connection
                app.num_bytes = 0
                answer = await client.post(JOBS, content=parts(), headers=headers)
                assert (answer.status_code, answer.json()) == (200, {"received": 400_000})

    asyncio.run(test())


def test_a_refusal_reaches_the_client_though_the_body_isnt_read(monkeypatch):
    monkeypatch.setattr(api_gateway, "COLLECTED_BYTES", 1000)

    async def test():
        async with receiver(reads=False) as (_, client, _):

            async def parts():
                yield b"x" * 100_000
                raise AssertionError("The body was read")

            for _ in range(2):
                answer = await client.post(JOBS, content=parts(), headers={"content-length": "400000"})
                assert (answer.status_code, answer.json()) == (413, {"received": 0})

    asyncio.run(test())


def test_a_large_body_that_a_stopping_replica_refuses_goes_to_another(monkeypatch):
    monkeypatch.setattr(api_gateway, "COLLECTED_BYTES", 1)

    async def test():
        async with proxy(2) as (apis, _, client):
            apis[0].may_answer.clear()
            held = asyncio.create_task(client.post(JOBS, content=b"{}"))
            while not (holder := next((api for api in apis if api.num_asked), None)):
                await asyncio.sleep(0.01)
            stopping = asyncio.create_task(holder.server.stop(0, 5))
            await asyncio.sleep(0.1)
            answers = [(await client.post(JOBS, content=b"[{}]")).json() for _ in range(3)]
            other = next(api for api in apis if api is not holder)
            assert [(answer["by"], answer["body"]) for answer in answers] == [(other.name, "[{}]")] * 3
            apis[0].may_answer.set()
            assert (await held).json()["by"] == holder.name  # which had until its answer
            await stopping

    asyncio.run(test())


def test_a_client_that_leaves_amid_a_large_body_is_noticed_by_the_api():
    async def test():
        async with receiver() as (app, _, gateway):
            messages = [{"type": "http.request", "body": b"x" * 1000, "more_body": True}, {"type": "http.disconnect"}]

            async def receive():
                return messages.pop(0)

            headers = [(b"content-length", b"9000000")]
            scope = {"type": "http", "method": "POST", "path": JOBS, "raw_path": JOBS.encode(), "query_string": b""}
            await gateway({**scope, "headers": headers}, receive, None)
            await asyncio.wait_for(app.has_left.wait(), 10)

    asyncio.run(test())
