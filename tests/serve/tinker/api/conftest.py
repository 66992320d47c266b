"""The Tinker API over the real store, with an executor in place of the coordinator."""

from dataclasses import replace
from hashlib import sha256

import pytest
from executor import Executor

from tandem.serve.tinker.store.store import TinkerStore

BASE = "tandem/tiny"


class Preparation:
    """Sizes of the base model, and digests that follow from the LoRA settings."""

    def __init__(self, whole):
        self._whole, self.made = whole, []

    def __getattr__(self, name):
        return getattr(self._whole, name)

    def sizes(self, base_model):
        return 512, 256

    def initial_version(self, base_model, lora=None):
        self.made.append(lora)
        return sha256(str(lora).encode()).hexdigest()


@pytest.fixture
def services(services):
    return replace(services, preparation=Preparation(services.preparation))


@pytest.fixture
def tinker_store(services):
    return TinkerStore(services.store.database, services.config.tinker)


@pytest.fixture
def executor(services, tinker_store):
    """Not started."""
    executor = Executor(tinker_store.claims, services.artifacts, BASE)
    yield executor
    executor.stop()


@pytest.fixture
def post(http):
    """Send JSON to a route of this API. Return the answer's JSON, checking its status."""

    def post(route, status=200, /, **body):
        response = http.post(f"/api/v1/{route}", json=body)
        assert response.status_code == status, response.text
        return response.json()

    return post


@pytest.fixture
def session(post):
    return post("create_session", tags=[], user_metadata={}, sdk_version="0.38.0")["session_id"]


@pytest.fixture
def run(post, session):
    """A training client's model."""
    lora = {"rank": 8, "seed": 3}
    made = post("create_model", session_id=session, model_seq_id=0, base_model=BASE, lora_config=lora)
    return made["model_id"]
