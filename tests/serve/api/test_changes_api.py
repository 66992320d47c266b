"""The stream of changes, over HTTP."""

import json
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
from waiting import wait_until

from tandem.serve.api.routes import changes
from tandem.serve.changes import feed
from tandem.serve.keys import add_key, create_key

CHANGES = "/v1/preview/changes"


@dataclass
class Message:
    kind: str = ""
    data: dict | None = None
    id: str | None = None


class Stream:
    """Reads the messages of a response."""

    def __init__(self, response):
        self.response, self.lines, self.comments = response, response.iter_lines(), 0

    def __iter__(self):
        message = Message()
        for line in self.lines:
            name, _, value = line.partition(": ")
            if name == "event":
                message.kind = value
            elif name == "data":
                message.data = json.loads(value)
            elif name == "id":
                message.id = value
            elif line.startswith(":"):
                self.comments += 1
            elif not line and message.kind:
                yield message
                message = Message()

    def next(self, kind=None):
        """Return the next message, of this kind."""
        return next(message for message in self if kind in (None, message.kind))


@pytest.fixture
def follow(address, app, key):
    """Open a stream."""

    @contextmanager
    def follow(key=key, last=None, **query):
        headers = {"Authorization": f"Bearer {key}", **({"Last-Event-ID": last} if last else {})}
        with httpx.stream("GET", address + CHANGES, headers=headers, params=query, timeout=60) as response:
            yield Stream(response)

    return follow


def test_a_stream_says_what_changes_from_its_first_message_on(follow, add_model, add_job):
    model = add_model()
    with follow() as stream:
        assert stream.response.status_code == 200
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert stream.response.headers["x-accel-buffering"] == "no"
        assert stream.next().kind == "ready"
        job = add_job(model)
        message = stream.next()
        assert (message.kind, message.data["id"], message.data["state"]) == ("job", job.id, "queued")
        assert message.data["model_id"] == model.id


def test_one_look_serves_all_viewers(follow, add_model, services):
    with follow() as first, follow() as second:
        assert [stream.next().kind for stream in (first, second)] == ["ready", "ready"]
        assert len(services.change_feed.viewers) == 2
        looking = services.change_feed._looking
        add_model()
        assert [stream.next().kind for stream in (first, second)] == ["model", "model"]
        assert services.change_feed._looking is looking
    wait_until(lambda: not services.change_feed.viewers)


def test_a_stream_resumes_after_the_last_message_that_arrived(follow, add_model):
    with follow() as stream:
        ready = stream.next()
        add_model("first")
        seen = stream.next()
    add_model("missed")
    with follow(last=seen.id) as stream:
        assert stream.next().kind == "ready"
        assert stream.next().kind == "model"
    with follow(last=ready.id, seconds=1) as stream:
        assert [message.kind for message in stream] == ["ready", "model", "model"]


def test_a_resume_that_is_not_possible_is_said(follow, add_model, services, store):
    with follow() as stream:
        ready = stream.next()
    with follow(last="another-7", seconds=0) as stream:
        reset = stream.next()
        assert reset.kind == "reset" and reset.data["reason"]
    services.change_feed.history._max_kept = 1
    with follow() as stream:
        stream.next()
        add_model("a")
        stream.next()
        add_model("b")
        stream.next()
    with follow(last=ready.id, seconds=0) as stream:
        assert stream.next().kind == "reset"
    with follow(last=reset.id, seconds=0) as stream:
        assert stream.next().kind == "reset"


def test_entities_see_nothing_of_each_other(follow, add_model, add_job, store):
    theirs = create_key(store, "k", "others")
    with follow(theirs) as stream, follow() as own:
        first = stream.next()
        own.next()
        job = add_job(add_model())
        seen = {message.data.get("id") for message in (own.next(), own.next())}
        assert job.id in seen
        other = add_model(entity="others")
        message = stream.next()
        assert (message.kind, message.data["id"]) == ("model", other.id)
    with follow(theirs, last=first.id, seconds=0) as stream:
        assert [message.data.get("id") for message in stream] == [None, other.id]


def test_a_key_with_role_infer_sees_models_and_versions_alone(follow, add_model, add_job, store):
    reader = create_key(store, "k", "team", "infer")
    with follow(reader) as stream, follow() as trainer:
        stream.next()
        trainer.next()
        job = add_job(add_model("a"))
        trainer.next("job")
        store.jobs.request_cancel(job.id, "team")
        trainer.next("job")
        add_model("b")
        assert [stream.next().kind for _ in range(2)] == ["model", "model"]


def test_a_stream_ends_when_its_key_is_revoked(follow, store):
    row, key = add_key(store, "k", "team", "train")
    with follow(key) as stream:
        assert stream.next().kind == "ready"
        store.keys.revoke(row.id)
        assert [message.kind for message in stream] == ["end"]
    with follow(key) as stream:
        assert stream.response.status_code == 401


def test_a_stream_ends_when_the_process_stops(follow, app, services, monkeypatch):
    stopping = False

    async def stops():
        return stopping

    monkeypatch.setattr(feed, "STOP_POLL_S", 0.0)
    services.change_feed.stops = stops
    with follow() as stream:
        assert stream.next().kind == "ready"
        stopping = True
        assert [message.kind for message in stream] == ["end"]


def test_the_number_of_streams_is_limited(follow, configure, app, store):
    configure("limits", max_streams_per_entity=1, max_streams=2)
    with follow() as stream:
        stream.next()
        with follow() as refused:
            refused.response.read()
            error = refused.response.json()["error"]
            assert (refused.response.status_code, error["code"]) == (429, "too_many_streams")
            assert "max_streams_per_entity" in error["message"]
        with follow(create_key(store, "k", "others")) as other:
            assert other.next().kind == "ready"
            with follow(create_key(store, "k", "thirds")) as refused:
                assert refused.response.status_code == 429
    wait_until(lambda: not app.state.services.change_feed.viewers)
    with follow() as stream:
        assert stream.next().kind == "ready"


def test_comments_show_that_a_quiet_stream_lives(follow, monkeypatch):
    monkeypatch.setattr(changes, "HEARTBEAT_S", 0.05)
    with follow(seconds=0.5) as stream:
        assert [message.kind for message in stream] == ["ready"]
    assert stream.comments >= 2


def test_a_stream_survives_a_store_that_does_not_answer(follow, services, add_model, monkeypatch):
    from tandem.serve.errors import NoAnswerError

    with follow() as stream:
        stream.next()
        models, failed = services.store.changes.models, []

        def fail():
            failed.append(1)
            raise NoAnswerError

        monkeypatch.setattr(services.store.changes, "models", fail)
        add_model()
        wait_until(lambda: failed)
        monkeypatch.setattr(services.store.changes, "models", models)
        assert stream.next().kind == "model"
