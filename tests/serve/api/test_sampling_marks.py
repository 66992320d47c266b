"""Every choice says which options of its request made it sample from another distribution than the policy's."""

import copy

import pytest
from openai.types.chat.chat_completion import Choice as ClientChoice

from tandem.rl.sampling_marks import CHANGES, marks_of, sampled_with
from tandem.rl.trajectories import Choice

SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
STRICT = [{"type": "function", "function": {"name": "look", "parameters": {}, "strict": True}}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
MARKED = [  # name, value, mark
    ("temperature", 0.7, 0.7),
    ("temperature", 0, 0),
    ("temperature", "0.5", True),  # the engine reads it as a number
    ("temperature", 1.0000001, 1.0000001),
    ("top_p", 0.95, 0.95),
    ("top_k", 20, 20),
    ("top_k", 1, 1),
    ("min_p", 0.05, 0.05),
    ("presence_penalty", -0.5, -0.5),
    ("frequency_penalty", 0.5, 0.5),
    ("repetition_penalty", 1.1, 1.1),
    ("logit_bias", {"5": -100}, True),
    ("allowed_token_ids", [5, 6], True),
    ("bad_words", ["no"], True),
    ("min_tokens", 4, 4),
    ("temperature", 10**400, 10**400),  # beyond a float; the engine rejects it
    ("thinking_token_budget", 0, 0),
    ("response_format", {"type": "json_object"}, True),
    ("response_format", SCHEMA, True),
    ("structured_outputs", {"choice": ["yes", "no"]}, True),
    ("tool_choice", "required", True),
    ("tool_choice", {"type": "function", "function": {"name": "look"}}, True),
    ("tools", STRICT, True),
    ("use_beam_search", True, True),
    ("watermarking", True, True),
    ("vllm_xargs", {"a": 1}, True),
]
UNMARKED = [
    *((name, None) for name in CHANGES),
    *(("temperature", one) for one in (1, 1.0, "1")),
    ("top_p", 1),
    *(("top_k", off) for off in (0, -1)),
    ("min_p", 0.0),
    ("presence_penalty", 0),
    ("frequency_penalty", 0.0),
    ("repetition_penalty", 1),
    ("logit_bias", {}),
    ("allowed_token_ids", []),
    ("bad_words", []),
    ("min_tokens", 0),
    ("response_format", {"type": "text"}),
    ("tool_choice", "auto"),
    ("tool_choice", "none"),
    ("tools", TOOLS),
    ("tools", "nonsense"),
    ("use_beam_search", False),
    ("seed", 7),
    ("n", 4),
    ("max_tokens", 5),
    ("stop", ["x"]),
]


@pytest.mark.parametrize(("name", "value", "mark"), MARKED)
def test_an_option_that_changes_the_distribution_is_marked(name, value, mark):
    assert sampled_with({"model": "m", name: value}) == {name: mark}


@pytest.mark.parametrize(("name", "value"), UNMARKED)
def test_an_option_without_effect_is_not_marked(name, value):
    assert sampled_with({"model": "m", name: value}) == {}


def test_every_option_is_known_to_training_and_tested():
    assert set(CHANGES) == {name for name, _, _ in MARKED}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_mark_reaches_the_choice_and_survives_the_client(http, engine, model, path):
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "prompt_token_ids": [5]}
    message = {"role": "assistant", "content": "7"}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None, "token_ids": [8]}
    engine.answers({**answer, "choices": [choice, copy.deepcopy(choice)]})
    body = {"model": "team/project/agent", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
    answered = http.post(path, json={**body, "top_p": 0.5, "temperature": 1, "tool_choice": "required"}).json()
    assert [choice["sampled_with"] for choice in answered["choices"]] == [{"top_p": 0.5, "tool_choice": True}] * 2
    kept = Choice.model_validate(ClientChoice.model_validate(answered["choices"][0]).model_dump(exclude_none=True))
    assert marks_of(kept.sampled_with) == ("top_p", "tool_choice")
    engine.answers({**answer, "choices": [choice]})
    assert http.post(path, json=body).json()["choices"][0]["sampled_with"] == {}
