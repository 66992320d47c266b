"""Requests that the engine can't answer are refused with a reason, and harm nothing."""

from __future__ import annotations

import pytest

from one_engine.shared_engine import MAX_MODEL_LEN, MESSAGES, VERSIONS
from tandem.cluster.engine.requests.protocols import COMPLETIONS

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"messages": ' + b"[" * 100_000,
        {"messages": []},
        {"messages": MESSAGES, "temperature": -1},
        {"messages": MESSAGES, "temperature": float("nan")},
        {"messages": MESSAGES, "max_tokens": 0},
        {"messages": MESSAGES, "max_tokens": MAX_MODEL_LEN + 1},
        {"messages": MESSAGES * 30},
        {"messages": MESSAGES, "n": 100_000},
        {"messages": MESSAGES, "top_k": 2**70},
        {"messages": MESSAGES, "logit_bias": {"99999": 1}},
        {"messages": MESSAGES, "stop": ["\ud800"]},
        {"messages": MESSAGES, "structured_outputs": {"regex": "(("}},
        {"messages": MESSAGES, "tools": [{}]},
    ],
    ids=lambda body: str(body)[-40:],
)
def test_a_bad_request_is_answered_and_harms_nothing(client, body):
    answer = client.ask(VERSIONS[1], body)
    assert answer.status in (400, 422), answer.body
    assert answer.json()["error"]["message"]
    assert client.load()["num_unfinished"] == 0


@pytest.mark.parametrize("prompt", [[99_999], [-1], []])
def test_token_ids_outside_the_vocabulary_are_refused(client, prompt):
    assert client.ask(VERSIONS[1], {"prompt": prompt, "max_tokens": 1}, COMPLETIONS).status == 400


def test_only_completions_can_be_asked_for(client):
    assert client.ask(VERSIONS[1], {}, "/scale_elastic_ep").status == 404


@pytest.mark.parametrize("tokens", [[], [5] * (MAX_MODEL_LEN + 1), [99_999], [-1]])
def test_sequences_that_cannot_be_scored_are_refused(client, tokens):
    with pytest.raises(ValueError, match="Sequence 1"):
        client.score([[5, 6], tokens], VERSIONS[1])
