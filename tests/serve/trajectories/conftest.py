"""Trajectories over the real application, with an index that a test fills when it wants to."""

import pytest

from tandem.serve.trajectories.indexing import index_next
from tandem.serve.trajectories.removal import remove_marked


@pytest.fixture
def index_all(services):
    """A function that indexes all that waits, and returns the number of attempts."""

    def index_all():
        count = 0
        while index_next(services.store, services.artifacts, services.config):
            count += 1
        return count

    return index_all


@pytest.fixture
def remove(services):
    return lambda: remove_marked(services.store, services.artifacts)


@pytest.fixture
def post_job(http, model):
    def post(*groups, **options):
        body = {"model_id": model["id"], "trajectory_groups": list(groups), **options}
        answer = http.post("/v1/preview/training-jobs", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    return post


@pytest.fixture
def post_log(http, model):
    def post(*groups, split="val"):
        body = {"model_id": model["id"], "split": split, "trajectory_groups": list(groups)}
        answer = http.post(f"/v1/preview/models/{model['id']}/log", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    return post


@pytest.fixture
def find(http):
    def find(**filters):
        answer = http.get("/v1/preview/trajectories", params=filters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return find
