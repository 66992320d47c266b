"""Spans say which version sampled which tokens, in the form that openpipe-art checks."""

import json

from pydantic import BaseModel

from tandem.cluster.engine.requests.chat.answers import Annotator


class Answer(BaseModel):
    choices: list[dict]
    prompt_token_ids: list[int] | None = None


def annotator() -> Annotator:
    return Annotator("team/project/agent:step3", "policy-d3", 3, {})


def span(start: int, end: int) -> dict:
    identity = {"generation_id": "d3", "policy_version": 3, "lora_slot": "team/project/agent:step3", "update_seq": 3}
    return {"start_token": start, "end_token": end, **identity}


def chunks(*parts: dict) -> list[dict]:
    """Return the annotated choices of the parts of one stream."""
    stream = annotator()
    sent = (json.loads(stream.events(b"data: " + json.dumps(part).encode() + b"\n\n")[6:]) for part in parts)
    return [choice for answer in sent for choice in answer["choices"]]


def test_a_whole_answer_has_a_span_for_each_choice():
    answer = Answer(choices=[{"token_ids": [7, 8]}, {"token_ids": [9]}], prompt_token_ids=[1, 2, 3])
    one, other = json.loads(annotator().response(answer))["choices"]
    assert (one["prompt_policy_token_spans"], one["policy_token_spans"]) == ([span(1, 3)], [span(0, 2)])
    assert other["policy_token_spans"] == [span(0, 1)]


def test_without_tokens_there_is_nothing_to_span():
    [empty] = json.loads(annotator().response(Answer(choices=[{"token_ids": []}], prompt_token_ids=[1])))["choices"]
    assert (empty["prompt_policy_token_spans"], empty["policy_token_spans"]) == ([], [])
    [unknown] = json.loads(annotator().response(Answer(choices=[{"text": "7"}])))["choices"]
    assert not {"policy_token_spans", "prompt_policy_token_spans"} & set(unknown)


def test_the_last_part_of_each_streamed_choice_has_the_spans_of_all():
    parts = chunks(
        {"prompt_token_ids": [1, 2], "choices": [{"index": 0, "delta": {}}]},
        {"prompt_token_ids": [1, 2], "choices": [{"index": 1, "delta": {}}]},
        {"choices": [{"index": 1, "token_ids": [7], "finish_reason": None}]},
        {"choices": [{"index": 0, "token_ids": [7, 8], "finish_reason": None}]},
        {"choices": [{"index": 1, "token_ids": [9, 10], "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "token_ids": [], "finish_reason": "length"}]},
        {"choices": []},
    )
    assert [part.get("policy_token_spans") for part in parts] == [None] * 4 + [[span(0, 3)], [span(0, 2)]]
    assert [part.get("prompt_policy_token_spans") for part in parts[4:]] == [[span(1, 2)]] * 2


def test_the_prompt_of_a_streamed_completion_isnt_replaced_by_null():
    first, last = chunks(
        {"choices": [{"index": 0, "text": "7", "token_ids": [7], "prompt_token_ids": [1, 2], "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "", "token_ids": [8], "prompt_token_ids": None, "finish_reason": "stop"}]},
    )
    assert first["prompt_token_ids"] == [1, 2]
    assert "prompt_token_ids" not in last
    assert last["policy_token_spans"] == [span(0, 2)]
