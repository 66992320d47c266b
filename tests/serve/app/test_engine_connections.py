"""The way from the API to engine replicas, over real connections to replicas that answer as a test says."""

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tandem.cluster.engine.requests.completions import Completions
from tandem.cluster.engine.requests.headers import MODEL_HEADER, REPLICA_HEADER, VERSION_HEADER
from tandem.cluster.engine.samples.sample_request import EngineLimits, SampleRequest
from tandem.cluster.engine.samples.samples_app import FETCH_PATH, START_PATH, Samples
from tandem.cluster.engine.server import EngineAddress, EngineServer
from tandem.cluster.errors import EngineDeadError, EngineLostError
from tandem.serve.app.engines import connections as engine_connections
from tandem.serve.app.engines.connections import EngineConnections

CHAT, BASE = "/v1/chat/completions", "tandem/tiny"
HEADERS = [(VERSION_HEADER, "2"), (MODEL_HEADER, "m")]
NOWHERE = EngineAddress("gone", "127.0.0.1", 1, "token")


class Replica:
    """A replica that answers each request once it may."""

    def __init__(self, name):
        self.name, self.num_asked, self.may_answer, self.left = name, 0, asyncio.Event(), asyncio.Event()
        self.may_answer.set()
        self.breaks = False
        self.completions = Completions(self._serve)
        self.server = EngineServer(self.completions, name)

    async def _serve(self, digest, scope, receive, send):
        self.num_asked += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": digest.encode(), "more_body": True})
        if self.breaks:
            raise RuntimeError("half of the answer is sent")
        waiting = [asyncio.ensure_future(awaitable) for awaitable in (self.may_answer.wait(), receive())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not self.may_answer.is_set():
            self.left.set()
        for one in waiting:
            one.cancel()
        await send({"type": "http.response.body", "body": b"x" * 3_000_000, "more_body": False})


@asynccontextmanager
async def replicas(num, *more, kind=Replica):
    """Replicas, their addresses after `more`, and connections to them."""
    async with AsyncExitStack() as stack:
        started, addresses = [kind(f"r{k}") for k in range(num)], list(more)
        for replica in started:
            addresses.append(await replica.server.start("127.0.0.1"))
            stack.push_async_callback(replica.server.stop, 0)

        def withdraw(_, address):
            addresses[:] = [one for one in addresses if one != address]

        yield started, addresses, EngineConnections(lambda: {BASE: list(addresses)}, withdraw)


def ask(connections, body=b'{"messages": []}'):
    return connections.http(BASE, "POST", CHAT, HEADERS, body, "d2")


async def whole(connections, **options):
    (status, headers), *parts = [item async for item in ask(connections, **options)]
    assert status == 200 and b"".join(parts) == b"d2" + b"x" * 3_000_000
    return dict(headers)[REPLICA_HEADER]


def test_an_answer_arrives_whole_and_the_connection_serves_again():
    async def scenario():
        async with replicas(1) as (_, _, connections):
            for _ in range(3):
                assert await whole(connections) == "r0"
            assert await whole(connections, body=json.dumps({"messages": ["y" * 3_000_000]}).encode()) == "r0"
            [replica] = connections._replicas[BASE].values()
            assert (replica.num_open, len(replica._idle)) == (0, 1)

    asyncio.run(scenario())


def test_requests_go_to_the_replica_with_the_fewest_open_ones():
    async def scenario():
        async with replicas(3) as (started, _, connections):
            for replica in started:
                replica.may_answer.clear()
            asking = [asyncio.create_task(whole(connections)) for _ in range(6)]
            while sum(replica.num_asked for replica in started) < 6:
                await asyncio.sleep(0.01)
            assert [replica.num_asked for replica in started] == [2, 2, 2]
            for replica in started:
                replica.may_answer.set()
            await asyncio.gather(*asking)

    asyncio.run(scenario())


def test_a_caller_who_leaves_disconnects():
    async def scenario():
        async with replicas(1) as ([replica], _, connections):
            replica.may_answer.clear()
            answer = ask(connections)
            assert (await anext(answer))[0] == 200
            assert await anext(answer) == b"d2"
            await answer.aclose()
            await asyncio.wait_for(replica.left.wait(), 60)
            replica.may_answer.set()
            assert await whole(connections) == "r0"

    asyncio.run(scenario())


def test_a_replica_that_is_gone_is_withdrawn_and_another_one_answers():
    async def scenario():
        async with replicas(1, NOWHERE) as (_, addresses, connections):
            assert await whole(connections) == "r0"
            assert NOWHERE not in addresses

    asyncio.run(scenario())


def test_a_replica_that_stops_passes_its_requests_on():
    async def scenario():
        async with replicas(2) as (started, _, connections):
            await whole(connections)
            started[0].may_answer.clear()
            first = asyncio.create_task(whole(connections))
            while not started[0].completions.num_open:
                await asyncio.sleep(0.01)
            stopping = asyncio.create_task(started[0].server.stop(60))
            started[1].may_answer.clear()
            others = [asyncio.create_task(whole(connections)) for _ in range(3)]
            while started[1].num_asked < 3:
                await asyncio.sleep(0.01)
            for replica in started:
                replica.may_answer.set()
            assert await asyncio.gather(first, *others) == ["r0", "r1", "r1", "r1"]
            await stopping

    asyncio.run(scenario())


def test_an_answer_that_ends_in_the_middle_is_a_dead_engine():
    async def scenario():
        async with replicas(1) as ([replica], _, connections):
            replica.breaks = True
            with pytest.raises(EngineDeadError):
                await whole(connections)

    asyncio.run(scenario())


def test_requests_wait_for_the_first_replica(monkeypatch):
    monkeypatch.setattr(engine_connections, "WAIT_S", 0.01)

    async def scenario():
        async with replicas(1) as (_, addresses, connections):
            [address], addresses[:] = list(addresses), []
            assert not await connections.exist()
            asking = asyncio.create_task(whole(connections))
            await asyncio.sleep(0.1)
            assert not asking.done()
            addresses.append(address)
            assert await asyncio.wait_for(asking, 60) == "r0"
            assert await connections.exist()

    asyncio.run(scenario())


class Keeping(Replica):
    """A replica that keeps samples: the one of the name "s" is done once it may be."""

    def __init__(self, name):
        super().__init__(name)
        self.samples = Samples(self._check, self._sample, BASE)
        self.server = EngineServer(self.completions, name, samples=self.samples)

    def _check(self, body):
        return SampleRequest.of(body, EngineLimits(context=16, vocab_size=100, max_logprobs=4, max_samples=9))

    async def _sample(self, request, digest, id, progress):
        await self.may_answer.wait()
        return f"{self.name} {digest}".encode()


async def answer_of(connections, path, body, replica=None):
    items = connections.http(BASE, "POST", path, HEADERS, json.dumps(body).encode(), "d2", replica)
    (status, headers), *parts = [item async for item in items]
    return status, dict(headers)[REPLICA_HEADER], b"".join(parts)


SAMPLE = {
    "sampling_session_id": "s",
    "seq_id": 1,
    "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1]}]},
    "sampling_params": {},
}
FETCH = {"session": "s", "seq": 1, "hold_s": 30}


def test_a_named_replica_answers_for_its_samples_also_while_it_stops(monkeypatch):
    monkeypatch.setattr(engine_connections, "WAIT_S", 0.0)
    monkeypatch.setattr(engine_connections, "REFRESH_S", 0.0)

    async def scenario():
        async with replicas(2, kind=Keeping) as (started, addresses, connections):
            for replica in started:
                replica.may_answer.clear()
            status, name, _ = await answer_of(connections, START_PATH, SAMPLE)
            assert status == 200
            mine = started[int(name[1])]
            fetching = [asyncio.create_task(answer_of(connections, FETCH_PATH, FETCH, name)) for _ in range(2)]
            while not mine.samples.futures.num_awaited:
                await asyncio.sleep(0.01)
            addresses[:] = [address for address in addresses if address.replica != name]  # it withdraws, and stops
            stopping = asyncio.create_task(mine.server.stop(60))
            other = {**SAMPLE, "seq_id": 2}
            for _ in range(2):
                assert (await answer_of(connections, START_PATH, other))[1] != name
            fetching.append(asyncio.create_task(answer_of(connections, FETCH_PATH, FETCH, name)))
            await asyncio.sleep(0.05)
            assert not stopping.done()
            mine.may_answer.set()
            assert await asyncio.gather(*fetching) == [(200, name, f"{name} d2".encode())] * 3
            await stopping
            with pytest.raises(EngineLostError):
                await answer_of(connections, FETCH_PATH, FETCH, name)

    asyncio.run(scenario())


def test_a_stopped_replica_hands_back_what_it_cant_finish():
    async def scenario():
        async with replicas(1, kind=Keeping) as ([replica], _, connections):
            replica.may_answer.clear()
            _, name, _ = await answer_of(connections, START_PATH, SAMPLE)
            fetching = asyncio.create_task(answer_of(connections, FETCH_PATH, FETCH, name))
            while not replica.samples.futures.num_awaited:
                await asyncio.sleep(0.01)
            await replica.server.stop(0)
            assert (await fetching)[0] == 410

    asyncio.run(scenario())


def test_a_replica_that_isnt_there_is_lost():
    async def scenario():
        async with replicas(0, NOWHERE) as (_, _, connections):
            for name in ("gone", "never"):
                with pytest.raises(EngineLostError):
                    await answer_of(connections, FETCH_PATH, FETCH, name)
            assert not await connections.serves(BASE)

    asyncio.run(scenario())
