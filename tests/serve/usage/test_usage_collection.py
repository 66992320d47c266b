"""Amounts come from the engines into the ledger, once each, and nobody else says who is charged."""

import pytest
from serve_fakes import choice

from tandem.cluster.engine.metrics.usage import Charged, EngineUsage, UsageMeter
from tandem.cluster.engine.requests.headers import CHARGED_HEADER
from tandem.serve.usage.collection import UsageCollection

BASE = "tandem/tiny"


class Replica:
    """An engine replica whose answers may get lost."""

    def __init__(self, name):
        self.name, self.meter, self.lost = name, UsageMeter(), []

    def samples(self, num_tokens):
        id = str(self.meter.total.requests)
        self.meter.begin(id, Charged("sample", "team", "k", "m", 1))
        self.meter.prefilled(id, 10, 0)
        self.meter.sampled(id, num_tokens)
        self.meter.end(id)

    def fetch(self, acknowledged, timeout_s):
        found = EngineUsage(self.name, BASE, self.meter.take(acknowledged.get(self.name, 0)))
        if self.lost and self.lost.pop(0):
            raise TimeoutError
        return [found, RuntimeError("another replica starts")]


@pytest.fixture
def sampled(store, http, clock):
    def sampled():
        clock.advance(1)
        return http.get("/v1/preview/usage").json()["total"]["sampled_tokens"]

    return sampled


def test_amounts_are_recorded_once_though_answers_and_collectors_are_lost(store, sampled):
    one, two = Replica("one"), Replica("two")
    left = []
    collection = UsageCollection(store.usage, [one.fetch, two.fetch], lambda: [left.pop() for _ in list(left)])
    one.samples(5)
    two.samples(7)
    one.lost = [True]
    collection.collect()
    assert sampled() == 7
    one.samples(11)
    collection.collect()
    collection.collect()
    assert sampled() == 7 + 5 + 11
    one.samples(13)
    another = UsageCollection(store.usage, [one.fetch, two.fetch], lambda: [])  # of a coordinator that is replaced
    another.collect()
    collection.collect()
    assert sampled() == 7 + 5 + 11 + 13
    two.samples(17)
    left.append(EngineUsage("two", BASE, two.meter.take()))  # it ends
    collection._fetches = []
    collection.collect()
    assert sampled() == 7 + 5 + 11 + 13 + 17


def test_a_collection_collects_once_more_when_it_stops(store, sampled):
    replica = Replica("one")
    collection = UsageCollection(store.usage, [replica.fetch], lambda: [], period_s=600)
    collection.start()
    replica.samples(5)
    collection.stop()
    assert sampled() == 5


def test_a_client_cannot_say_who_is_charged(http, engine, model, store):
    engine.answers({"object": "chat.completion", "choices": [choice()]})
    forged = {CHARGED_HEADER: Charged("sample", "others", "their-key", "their-model").header()}
    body = {"model": "team/project/agent", "messages": [{"role": "user", "content": "hi"}]}
    assert http.post("/v1/chat/completions", json=body, headers=forged).status_code == 200
    [(*_, headers, _, _)] = engine.asked
    charged = Charged.of_header(headers[CHARGED_HEADER], 0)
    assert charged == Charged("sample", "team", store.keys.all("team")[0].id, model["id"])
    body["model"] = BASE
    assert http.post("/v1/chat/completions", json=body, headers=forged).status_code == 200
    assert Charged.of_header(engine.asked[-1][3][CHARGED_HEADER], 0).model_id == ""
