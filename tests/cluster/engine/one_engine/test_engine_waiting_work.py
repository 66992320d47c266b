"""Work that nobody waits for ends, chat precedes scoring, and a sleeping engine holds all work."""

from __future__ import annotations

import pytest
import ray

from one_engine.shared_engine import LONG, MANY, MESSAGES, VERSIONS, random_sequences

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_who_leaves_ends_the_generation(client, stream):
    answer = client.start(VERSIONS[1], LONG | {"stream": stream})
    client.wait_until_busy(MANY // 2)
    if stream:
        assert answer.response.status == 200
        assert answer.response.readline().startswith(b"data: ")
    answer.cancel()
    client.wait_until_idle()


def test_scoring_that_is_abandoned_ends(client):
    answering = client.start(VERSIONS[1], LONG)  # chat has priority, so nothing is scored for a minute
    scored = client.actor.score.remote(random_sequences(400, seed=2), VERSIONS[1])
    client.wait_until_busy(MANY + 300)
    ray.cancel(scored)
    client.wait_until_idle(but_for=MANY)
    answering.cancel()
    client.wait_until_idle()


def test_chat_goes_before_scoring(client):
    scored = client.actor.score.remote(random_sequences(2000, seed=3), VERSIONS[1])
    client.wait_until_busy(1500)
    client.chat(VERSIONS[1], max_tokens=4)
    assert client.load()["num_unfinished"] > 100  # the chat didn't wait for the scoring
    ray.cancel(scored)
    client.wait_until_idle()


def test_a_sleeping_engine_holds_all_work_until_it_wakes_up(client):
    ray.get(client.actor.lease_sleep.remote("learners", 600))
    completion = client.start(VERSIONS[1], {"messages": MESSAGES, "max_tokens": 4})
    scores = client.actor.score.remote([[1, 2, 3]], VERSIONS[1])
    check = client.actor.check_version.remote(VERSIONS[2])
    assert not ray.wait([scores, check], timeout=1)[0]
    assert client.load()["num_unfinished"] == 0
    ray.get(client.actor.release_sleep.remote("learners"))
    assert client.finish(completion).status == 200
    assert len(ray.get(scores)[0]) == 3
    ray.get(check)
