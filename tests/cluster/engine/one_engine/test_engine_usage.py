"""The usage of an engine counts every token and second for the key that asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
import ray
from engine_client import ask
from protocol_answers import request_to

from one_engine.shared_engine import HELLO, LONG, MAX_MODEL_LEN, VERSIONS, random_sequences
from tandem.cluster.engine.metrics.usage import Charged, Used
from tandem.cluster.engine.requests.protocols import CHAT, COMPLETIONS, MESSAGES, RESPONSES

pytestmark = pytest.mark.usefixtures("ray_local")

IN_THREE = (CHAT, RESPONSES, MESSAGES)


def usage_of(path: str, content: bytes, is_stream: bool) -> tuple[int, int, int]:
    """Return the tokens of prompt, prefix cache and answer, as a protocol's answer says them."""
    answers = (
        [json.loads(content)]
        if not is_stream
        else [
            json.loads(line.removeprefix("data:"))
            for line in content.decode().splitlines()
            if line.startswith("data:") and "[DONE]" not in line
        ]
    )
    found = [one.get("response", one).get("usage") for one in answers]
    usage: dict[str, Any] = {}
    for one in filter(None, [answers[0].get("message", {}).get("usage"), *found]):
        usage |= one
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    cached = (usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}).get("cached_tokens")
    return prompt, cached, usage.get("completion_tokens", usage.get("output_tokens"))


def test_tokens_are_counted_for_who_asked_whatever_the_protocol_and_the_end(client):
    client.wait_until_idle()
    batches, busy_s = ray.get(client.actor.take_usage.remote(0))
    asked: dict[Charged, tuple[int, int]] = {}
    kind = {"role": "system", "content": "Be kind. " * 20}  # longer than a block of the cache, whose size may be 128
    body = HELLO | {"messages": [kind, *HELLO["messages"][1:]], "max_tokens": 9}
    options = {"stream_options": {"include_usage": True}}
    plain = {"prompt": [5, 6, 7, 8], "max_tokens": 6, "ignore_eos": True}
    chat_like = [(path, request_to(path, body, stream), stream) for path in IN_THREE for stream in (False, True)]
    texts = [(COMPLETIONS, plain | {"stream": stream}, stream) for stream in (False, True)]
    requests = chat_like + texts
    requests += [(CHAT, body | {"n": 3, "temperature": 1.0, "ignore_eos": True}, False)]
    for number, (path, request, stream) in enumerate(requests):
        charged = Charged("sample", "team", f"key {number}", "m", 3)
        extra = options if stream and path in (CHAT, COMPLETIONS) else {}
        answer = ask(client.address, VERSIONS[1], request | extra, path, charged).finish()
        assert answer.status == 200, answer.body
        prompt, _, sampled = usage_of(path, answer.body, stream)
        asked[charged] = prompt, sampled
    leaver = Charged("sample", "team", "leaver", "m", 3)
    leaving = ask(client.address, VERSIONS[1], LONG | {"n": 4, "stream": True}, CHAT, leaver)
    leaving.response.read(200)
    leaving.cancel()
    job = "a-training-job"
    ray.get(client.actor.score.remote(random_sequences(5, seed=2), VERSIONS[1], job_id=job))
    client.score([[5, 6, 7]], VERSIONS[1])
    client.wait_until_idle()

    new, now_busy_s = ray.get(client.actor.take_usage.remote(max((batch.number for batch in batches), default=0)))
    used: dict[Charged, Used] = {}
    for batch in new:
        for charged, amounts in batch.used.items():
            used.setdefault(charged, Used()).add(amounts)
    assert {charged: (used[charged].prompt_tokens, used[charged].sampled_tokens) for charged in asked} == asked
    assert all(used[charged].requests == 1 and used[charged].engine_seconds > 0 for charged in asked)
    repeated = [charged for charged, amounts in used.items() if amounts.cached_prompt_tokens]
    assert repeated and all(amounts.cached_prompt_tokens < amounts.prompt_tokens for amounts in map(used.get, repeated))
    assert used[leaver].requests == 1 and 0 < used[leaver].sampled_tokens < 4 * MAX_MODEL_LEN
    scored = used[Charged("score", job_id=job)]
    assert scored.engine_seconds > 0 and scored.sampled_tokens == scored.prompt_tokens == 0
    assert set(used) == {*asked, leaver, Charged("score", job_id=job), Charged()}
    assert sum(amounts.engine_seconds for amounts in used.values()) == pytest.approx(now_busy_s - busy_s)
    assert {one.model_id for batch in new for one in batch.sampling} == {"m"}
