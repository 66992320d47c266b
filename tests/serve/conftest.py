import os
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest
import uvicorn
from fastapi.testclient import TestClient
from serve_fakes import Engine, TextModel
from sqlalchemy import create_engine

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.serve.api import create_app
from tandem.serve.auth import create_key
from tandem.serve.services import Services
from tandem.serve.store import Store
from tandem.serve.tables import Table

BASE = "tandem/tiny"
ZERO = "0" * 64


class Clock:
    """A time that stands still until a test moves it."""

    def __init__(self):
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store_url(tmp_path):
    """A fresh SQLite file, or the PostgreSQL database that TANDEM_TEST_STORE_URL names, emptied."""
    url = os.environ.get("TANDEM_TEST_STORE_URL")
    if url:
        engine = create_engine(url)
        Table.metadata.drop_all(engine)
        engine.dispose()
    return url or f"sqlite:///{tmp_path / 'tandem.db'}"


@pytest.fixture
def store(store_url, clock):
    store = Store(store_url, clock)
    store.put_initial_version(BASE, ZERO)
    yield store
    store.close()


@pytest.fixture
def add_model(store):
    def add(name="agent", entity="team", base_model=BASE):
        return store.add_model(entity, "project", name, base_model, return_existing=True)

    return add


@pytest.fixture
def add_job(store):
    def add(model, key=None, body="0" * 64, config=None):
        job_id = str(uuid.uuid4())
        return store.add_job(job_id, model.id, f"payloads/{job_id}", config or {"learning_rate": 1e-3}, body, key)

    return add


@pytest.fixture
def claim(store):
    def claim(base_model=BASE, owner="coordinator", lease_s=30):
        return store.claim_next(base_model, owner, lease_s)

    return claim


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture(scope="session")
def text_model():
    return TextModel()


@pytest.fixture
def coordinator():
    """What the coordinator says about itself; tests change it."""
    return {BASE: {"running_job": None, "learners_running": True, "last_error": None}}


@pytest.fixture
def services(tmp_path, store, engine, text_model, coordinator):
    async def status():
        if isinstance(coordinator.get("raises"), Exception):
            raise coordinator["raises"]
        return coordinator

    return Services(
        config=TandemConfig(home=tmp_path),
        store=store,
        artifacts=Artifacts(str(tmp_path / "artifacts")),
        engine=engine,
        base_models={BASE: text_model},
        coordinator_status=status,
    )


@pytest.fixture
def key(store):
    return create_key(store, "tests", "team")


@pytest.fixture(scope="session")
def session_app():
    return create_app(services=None)


@pytest.fixture
def app(session_app, services):
    """The application over this test's services; building its routes takes a while, so that is done once."""
    session_app.state.services = services
    return session_app


@pytest.fixture
def http(app, key):
    """A client of entity "team"."""
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(app, "http://tandem", raise_server_exceptions=False, headers=headers) as client:
        yield client


@pytest.fixture
def model(http):
    body = {"entity": None, "project": "project", "name": "agent", "base_model": BASE, "return_existing": True}
    return http.post("/v1/preview/models", json=body).json()


@pytest.fixture
def blobs(tmp_path):
    """The blobs that the artifact store holds."""
    root = tmp_path / "artifacts"
    return lambda: sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@pytest.fixture(scope="session")
def address(session_app):
    """Where the application listens for real clients."""
    config = uvicorn.Config(session_app, port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def base_url(address, app):
    """What clients are given, while `app` has this test's services."""
    return f"{address}/v1"
