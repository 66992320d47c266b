"""A version whose numbers aren't finite is refused, and leaves the other versions as they were."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from policy_reference import sampled_tokens, write_adapter

from one_engine.shared_engine import MESSAGES, VERSIONS, Client
from tandem.cluster.engine.requests.protocols import COMPLETIONS
from tandem.cluster.errors import VersionNotFiniteError

pytestmark = pytest.mark.usefixtures("ray_local")

HUGE = {  # standard deviations of the B matrices
    "nan": float("nan"),
    "inf": float("inf"),
    "overflows with alpha / r": 5e37,
    "overflows in the attention": 1e20,
}
SHORT = [{"messages": [{"role": "user", "content": text}]} for text in ("Hi", "Add 3 and 4.", "One two three")]


@pytest.mark.parametrize("kind", HUGE)
def test_a_version_that_is_not_finite_is_refused_and_leaves_the_others_as_they_were(
    client, artifacts, tiny_model, kind
):
    digest = f"{list(HUGE).index(kind) + 0xA0:064x}"
    write_adapter(tiny_model, artifacts.checkpoints_dir / digest, seed=1, scale=HUGE[kind])
    before = short_answers(client, VERSIONS[1])
    for options in ({}, {"logprobs": False}, {"stream": True}):
        answer = client.ask(digest, {"messages": MESSAGES, "logprobs": True} | options)
        assert (answer.status, answer.json()["error"]["param"]) == (422, "model")
        assert "learning rate" in answer.json()["error"]["message"]
    with pytest.raises(VersionNotFiniteError):
        client.score([[5, 6]], digest)
    assert digest in ray.get(client.actor.not_finite.remote())
    assert digest not in client.load()["adapters"]
    assert short_answers(client, VERSIONS[1]) == before


def test_no_request_reads_what_a_version_that_is_not_finite_left_in_the_cache(client, artifacts, tiny_model):
    """Such a version gets past the probe here, as one could that overflows on other tokens alone."""
    broken = "f" * 64
    write_adapter(tiny_model, artifacts.checkpoints_dir / broken, seed=1, scale=1e20)
    before = [short_answers(client, version) for version in VERSIONS[:3]]

    def let_the_next_pass(engine: Any) -> None:
        async def check_logits(*_: Any) -> None:
            del engine._loader._check_logits

        engine._loader._check_logits = check_logits

    ray.get(client.actor.__ray_call__.remote(let_the_next_pass))
    for tokens in range(3, 35):  # different prompts, so that together they fill every block of the cache
        poisoned = client.start(broken, {"prompt": [tokens] * 95, "n": 2, "logprobs": tokens % 2}, COMPLETIONS)
        among = client.start(VERSIONS[tokens % 3], SHORT[0] | {"logprobs": True, "max_tokens": 4})
        assert (client.finish(poisoned).status, client.finish(among).status) == (422, 200)
    client.wait_until_idle()
    assert [short_answers(client, version) for version in VERSIONS[:3]] == before
    assert broken in ray.get(client.actor.not_finite.remote())


def short_answers(client: Client, digest: str) -> list[list[int]]:
    """Greedy completions of prompts that end early in a block of the cache."""
    answers = [client.ask(digest, body | {"temperature": 0, "logprobs": True, "max_tokens": 8}) for body in SHORT]
    assert {answer.status for answer in answers} == {200}, [answer.body[:200] for answer in answers]
    return [sampled_tokens(answer.json()["choices"][0])[0] for answer in answers]
