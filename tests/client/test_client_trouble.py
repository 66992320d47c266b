"""Lost answers, a busy or unreachable service, and answers from another service."""

import time

import pytest
from serve_fakes import groups
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse

from tandem.client import NoAnswerError, QueueFullError, Retries, ServiceError, UnexpectedAnswerError

REGISTERED = {"project": "project", "base_model": "tandem/tiny"}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(Retries, "FIRST_PAUSE_S", 0.02)


def rejection(status, code="x", message="Not now.", **headers):
    body = {"error": {"message": message, "type": "x", "code": code, "param": None}}
    return JSONResponse(body, status, headers)


def test_a_job_whose_answers_get_lost_is_made_once(client, agent, network):
    network.lost = 3
    job = client.train(agent, groups())
    assert [listed.id for listed in client.jobs()] == [job]


def test_a_registration_whose_answer_gets_lost_is_repeated_only_if_that_is_safe(client, network):
    network.lost = 1
    client.register_model("a", **REGISTERED)
    network.lost, network.num_requests = 1, 0
    with pytest.raises(NoAnswerError):
        client.register_model("b", **REGISTERED, return_existing=False)
    assert network.num_requests == 1
    assert [model.short_name for model in client.models()] == ["a", "b"]


@pytest.mark.parametrize("delete", ["delete_model", "delete_checkpoints"])
def test_deletions_are_never_repeated(client, agent, network, delete):
    network.lost, network.num_requests = 1, 0
    with pytest.raises(NoAnswerError):
        getattr(client, delete)(*([agent] if delete == "delete_model" else [agent, [1]]))
    assert network.num_requests == 1


@pytest.mark.parametrize("answer", [rejection(503), rejection(500), PlainTextResponse("Path not found", 404)])
def test_passing_failures_are_retried(client, agent, network, answer):
    network.answers = [answer] * 3
    assert client.get_model(agent) == agent


def test_retry_after_is_respected(client, agent, network):
    network.answers = [rejection(429, "queue_full", **{"retry-after": "1"})]
    began = time.monotonic()
    client.train(agent, groups())
    assert time.monotonic() - began >= 1


def test_a_pause_beyond_the_limit_isnt_waited_for(connect, url, key, agent, network):
    network.answers, network.num_requests = [rejection(429, "queue_full", **{"retry-after": "100"})], 0
    with pytest.raises(QueueFullError) as raised:
        connect(url, key, retries=50).train(agent, groups())
    assert (raised.value.status, raised.value.code, raised.value.retry_after_s) == (429, "queue_full", 100)
    assert network.num_requests == 1


def test_a_full_queue_of_the_application_is_that_error(connect, url, key, agent, configure):
    configure("limits", max_open_jobs_per_project=1)
    client = connect(url, key, retries=0)
    client.train(agent, groups())
    with pytest.raises(QueueFullError) as raised:
        client.train(agent, groups())
    assert raised.value.retry_after_s and raised.value.code == "queue_full"


def test_x_should_retry_is_respected(client, agent, network):
    network.answers, network.num_requests = [rejection(504, "too_long", **{"x-should-retry": "false"})] * 2, 0
    with pytest.raises(ServiceError) as raised:
        client.get_model(agent)
    assert (raised.value.status, network.num_requests) == (504, 1)


def test_trouble_that_stays_ends_with_the_last_sentence(connect, url, key, agent, network):
    network.answers = [rejection(503, message="The store doesn't answer.")] * 1000
    with pytest.raises(ServiceError, match=r"The store doesn't answer\.") as raised:
        connect(url, key, retries=1).get_model(agent)
    assert raised.value.status == 503
    assert network.num_requests > 1


def test_an_address_where_nothing_listens(connect, key):
    with pytest.raises(NoAnswerError, match=r"127\.0\.0\.1:9") as raised:
        connect("http://127.0.0.1:9", key, retries=0).health()
    assert isinstance(raised.value, ConnectionError)


@pytest.mark.parametrize("page", [HTMLResponse("<h1>Welcome</h1>"), JSONResponse({"data": "none"})])
def test_another_service_is_noticed(client, network, page):
    network.answers = [page]
    with pytest.raises(UnexpectedAnswerError):
        client.get_model("some-id")
