"""Clients of the real application over SQLite."""

import httpx
import pytest
import tinker
from run_data import RunData

from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.keys import create_key


@pytest.fixture
def data(services):
    return RunData(services)


@pytest.fixture
def client_of(app, address, store):
    """A function that returns the SDK's RestClient for a key of an entity."""

    def client_of(entity="team", role="train"):
        return tinker.RestClient(base_url=address, api_key=f"tml-{create_key(store, 'sdk', entity, role)}")

    return client_of


@pytest.fixture
def rest(client_of):
    return client_of()


@pytest.fixture
def raw(app, address, key):
    with httpx.Client(base_url=address, headers={"X-API-Key": f"tml-{key}"}) as client:
        yield client


@pytest.fixture
def job_model(add_model, add_job, claim, store, data):
    """A model with two versions that jobs made."""
    model = add_model()
    for value in (1.0, 2.0):
        add_job(model)
        job = claim()
        version = PolicyVersion(job.model_id, job.next_step, data.checkpoint(value))
        store.claims.complete(job, version, {})
    return model
