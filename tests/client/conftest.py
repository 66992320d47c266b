"""Both clients against the real application over real HTTP, on a network that can fail."""

import asyncio
import runpy
import sys
import threading

import pytest
import uvicorn
from paths import ROOT
from waiting import wait_until

from tandem.client import AsyncClient, Client
from tandem.cluster.jobs.job import PolicyVersion

SERVE_TESTS = ROOT / "tests" / "serve"
sys.path.append(str(SERVE_TESTS))  # its fakes are imported below
APPLICATION = runpy.run_path(str(SERVE_TESTS / "conftest.py"))
globals().update({name: value for name, value in APPLICATION.items() if not name.startswith("_")})  # its fixtures


class Network:
    """The connection to the application. It can lose answers or replace them."""

    def __init__(self, app):
        self._app, self.lost, self.answers, self.num_requests = app, 0, [], 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.num_requests += 1
        if self.lost:
            self.lost -= 1
            await self._app(scope, receive, self._lose)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            raise ConnectionResetError  # uvicorn closes the connection
        answer = self.answers.pop(0) if self.answers else self._app
        await answer(scope, receive, send)

    async def _lose(self, message):
        pass


@pytest.fixture(scope="session")
def network_server(session_app):
    network = Network(session_app)
    server = uvicorn.Server(uvicorn.Config(network, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield network, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def network(network_server, app):
    """The network. `lost`: the number of answers to lose; `answers`: ASGI responses to send instead, in order."""
    network, _ = network_server
    network.lost, network.answers, network.num_requests = 0, [], 0
    return network


@pytest.fixture
def url(network_server, network):
    return network_server[1]


class Awaited:
    """An AsyncClient with the synchronous methods of Client. All calls run in one event loop."""

    def __init__(self, runner, client):
        self.runner, self._client = runner, client

    def __getattr__(self, name):
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute

        def run(*args, **kwargs):
            made = attribute(*args, **kwargs)
            if asyncio.iscoroutine(made):
                return self.runner.run(made)
            return self._iterate(made) if hasattr(made, "__anext__") else made

        return run

    def _iterate(self, items):
        async def following():
            return await anext(items)

        while True:
            try:
                yield self.runner.run(following())
            except StopAsyncIteration:
                return


@pytest.fixture(params=["sync", "async"])
def connect(request):
    """A function that makes a sync or async client; both take the same arguments."""
    with asyncio.Runner() as runner:
        clients = []

        def connect(*args, **kwargs):
            is_async = request.param == "async"
            client = Awaited(runner, AsyncClient(*args, **kwargs)) if is_async else Client(*args, **kwargs)
            clients.append(client)
            return client

        yield connect
        for client in clients:
            client.close()


@pytest.fixture
def client(connect, url, key):
    return connect(url, key)


@pytest.fixture
def agent(client):
    return client.register_model("agent", project="project", base_model="tandem/tiny")


@pytest.fixture
def end_next_job(store, claim):
    """A function that claims the next job, as a coordinator does, and completes it, or fails it with `error`;
    `warning` is recorded before."""

    def end(error=None, warning=None):
        job = claim()
        store.claims.record_event(job, "training_started", {"num_sequences": 1, "num_gradient_steps": 1})
        if warning:
            store.claims.record_event(
                job, "warning", {"kind": "nothing_trained", "message": warning, "counts": {"empty": 2}}
            )
        store.claims.record_event(job, "gradient_step", {"loss/train": 0.5})
        if error:
            store.claims.fail(job, error)
        else:
            store.claims.complete(
                job, PolicyVersion(job.model_id, job.next_step, f"digest-{job.next_step}"), {"reward": 0.5}
            )

    return end
