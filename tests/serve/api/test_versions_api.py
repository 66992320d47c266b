"""Waiting for a newer policy version."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from waiting import wait_until

from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.api.routes.versions import RECHECK_S
from tandem.serve.keys import create_key


@pytest.fixture
def url(model):
    return f"/v1/preview/models/{model['id']}/versions"


@pytest.fixture
def train(store, add_job, claim, model):
    def train(*digests):
        for digest in digests:
            add_job(store.models.get(model["id"], "team"))
            claimed = claim()
            store.claims.complete(claimed, PolicyVersion(model["id"], claimed.next_step, digest), {})

    return train


def test_versions_that_are_there_come_at_once(http, url, train, model):
    train("a", "b", "c")
    began = time.monotonic()
    page = http.get(url, params={"after": 1, "wait": 60}).json()
    assert time.monotonic() - began < 50
    assert page["data"] == [
        {"id": f"{model['id']}:{step}", "step": step, "digest": digest, "created_at": "2026-01-01T00:00:00Z"}
        for step, digest in ((2, "b"), (3, "c"))
    ]
    page = http.get(url, params={"limit": 1}).json()
    assert ([v["step"] for v in page["data"]], page["has_more"]) == ([1], True)


def test_without_newer_versions_it_answers_when_the_wait_is_over(http, url, train):
    train("a")
    assert http.get(url, params={"after": 1}).json()["data"] == []
    began = time.monotonic()
    assert http.get(url, params={"after": 1, "wait": 0.3}).json()["data"] == []
    assert time.monotonic() - began >= 0.3


def test_a_version_made_meanwhile_ends_the_wait(http, url, train):
    train("a")
    later = threading.Timer(0.5, train, ["b"])
    later.start()
    began = time.monotonic()
    page = http.get(url, params={"after": 1, "wait": 60}).json()
    later.join()
    assert [v["step"] for v in page["data"]] == [2]
    assert time.monotonic() - began < 50


def test_a_change_of_another_model_costs_waiting_requests_no_query(http, url, store, train, add_model, monkeypatch):
    """One query tells all of them; they look themselves only when their own model has a version."""
    looks, versions = [], store.versions.page
    monkeypatch.setattr(store.versions, "page", lambda *args: looks.append(args) or versions(*args))
    monkeypatch.setattr("tandem.serve.api.routes.versions.RECHECK_S", 60.0)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(http.get, url, params={"wait": 60}) for _ in range(3)]
        wait_until(lambda: len(looks) == 3)
        for number in range(5):
            add_model(f"other-{number}")
            time.sleep(0.05)
        assert len(looks) == 3
        train("a")
        assert [[v["step"] for v in page.result().json()["data"]] for page in waiting] == [[1]] * 3
    assert len(looks) == 6


def test_many_may_wait_without_blocking_the_others(base_url, key, url):
    """With more waiting requests than the server has threads, another request is still answered."""

    async def ask():
        headers = {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(headers=headers, timeout=300, limits=limits) as client:
            address = base_url.removesuffix("/v1") + url
            waiting = [asyncio.create_task(client.get(address, params={"wait": 60})) for _ in range(60)]
            await asyncio.sleep(1)
            assert (await client.get(address)).json()["data"] == []
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(ask())


def test_a_client_that_hangs_up_ends_the_polling(connect, hang_up, url, store, monkeypatch):
    polls = []
    versions = store.versions.page
    monkeypatch.setattr(store.versions, "page", lambda *args: polls.append(time.monotonic()) or versions(*args))
    connection = connect(f"{url}?wait=60", method="GET")
    wait_until(lambda: len(polls) > 1)
    hang_up(connection)
    wait_until(lambda: time.monotonic() - polls[-1] > 5 * RECHECK_S)


@pytest.mark.parametrize("query", [{"wait": 61}, {"wait": -1}, {"wait": "nan"}, {"after": -1}, {"after": "new"}])
def test_what_can_not_be_waited_for_is_refused(http, url, query):
    assert http.get(url, params=query).status_code == 422


def test_only_the_entity_sees_them(http, url, store):
    others = {"Authorization": f"Bearer {create_key(store, 'k', 'others')}"}
    assert http.get(url, headers=others).status_code == 404
