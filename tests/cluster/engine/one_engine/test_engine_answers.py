"""Answers and scores under several versions at once equal those of transformers and PEFT."""

from __future__ import annotations

import json

import pytest
import ray
import torch
from engine_client import REQUESTED
from policy_reference import sampled_tokens

from one_engine.shared_engine import MESSAGES, TOLERANCE, VERSIONS, assert_choices_follow_policy, random_sequences

pytestmark = pytest.mark.usefixtures("ray_local")


def test_versions_mixed_in_a_batch_sample_and_score_like_transformers_and_peft(client, reference):
    options = {"messages": MESSAGES, "logprobs": True, "return_token_ids": True, "n": 2, "max_tokens": 128}
    options |= {"ignore_eos": True}
    sequences = random_sequences(6, seed=1)
    chats = [(digest, client.start(digest, options | {"seed": k})) for digest in VERSIONS[:5] for k in range(3)]
    scores = [(digest, client.actor.score.remote(sequences, digest)) for digest in VERSIONS[:4]]
    for digest, stream in chats:
        completion = client.finish(stream).json()
        assert completion["model"] == REQUESTED
        assert len(completion["choices"]) == 2
        assert_choices_follow_policy(completion, reference, digest)
    for digest, scored in scores:
        for tokens, logprobs in zip(sequences, ray.get(scored), strict=True):
            assert len(logprobs) == len(tokens)
            assert logprobs[0] != logprobs[0]  # NaN: nothing comes before the first token
            expected = reference.logprobs(digest, tokens)
            torch.testing.assert_close(torch.tensor(logprobs[1:]), expected, rtol=0, atol=TOLERANCE)


def test_an_old_version_stays_the_same_while_new_ones_load(client, reference):
    options = {"ignore_eos": True, "logprobs": True, "return_token_ids": True}
    stream = client.start(VERSIONS[1], {"messages": MESSAGES, "n": 16, **options})
    answers = {digest: client.chat(digest, max_tokens=2) for digest in VERSIONS[4:]}
    assert client.load()["num_unfinished"] > 0  # the old version is still generating
    for digest, answer in answers.items():
        assert_choices_follow_policy(answer, reference, digest)
    assert_choices_follow_policy(client.finish(stream).json(), reference, VERSIONS[1])


def test_the_stop_token_has_its_raw_logprob_in_the_content(client, reference, tiny_model):
    eos = json.loads((tiny_model / "generation_config.json").read_text())["eos_token_id"]
    completion = client.chat(
        VERSIONS[1], max_tokens=5, logit_bias={str(eos): 100}
    )  # stops at once, whatever the policy
    (choice,) = completion["choices"]
    assert choice["finish_reason"] == "stop"
    assert sampled_tokens(choice)[0] == [eos]
    assert_choices_follow_policy(completion, reference, VERSIONS[1])


def test_streaming_gives_the_same_tokens_in_pieces(client):
    options = {"temperature": 0, "max_tokens": 64, "ignore_eos": True, "logprobs": True}
    whole = client.chat(VERSIONS[2], **options)["choices"][0]
    answer = client.ask(VERSIONS[2], {"messages": MESSAGES, "stream": True, **options})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = [line.removeprefix("data: ") for line in answer.body.decode().split("\n\n") if line]
    assert done == "[DONE]"
    pieces = [choice for event in events for choice in json.loads(event)["choices"]]
    assert len(pieces) > 3  # vLLM merges tokens that are generated faster than they are sent
    entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
    assert [entry["token"] for entry in entries] == [entry["token"] for entry in whole["logprobs"]["content"]]
    assert "".join(piece["delta"].get("content") or "" for piece in pieces) == whole["message"]["content"]


@pytest.mark.parametrize("tool_choice", ["required", {"type": "function", "function": {"name": "pick"}}])
def test_a_forced_tool_call_is_one(client, reference, tool_choice):
    parameters = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "pick", "strict": True, "parameters": parameters}}]
    completion = client.chat(VERSIONS[1], tools=tools, tool_choice=tool_choice, max_tokens=150)
    (call,) = completion["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "pick"
    assert json.loads(call["function"]["arguments"])["colour"] in ("red", "blue")
    # vLLM masks forbidden tokens before it computes logprobs, so these are at least the policy's own.
    prompt, (ids, logprobs) = completion["prompt_token_ids"], sampled_tokens(completion["choices"][0])
    assert ids == completion["choices"][0]["token_ids"]
    assert (logprobs >= reference.logprobs(VERSIONS[1], prompt + ids)[len(prompt) - 1 :] - TOLERANCE).all()
