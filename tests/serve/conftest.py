import os
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine

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
