"""Fields of Responses and Messages are read, refused by name, or known to have no effect; none is ignored."""

import pytest

from tandem.cluster.engine.requests.messages.fields import RULES as MESSAGES_RULES
from tandem.cluster.engine.requests.messages.fields import checked_count, checked_message
from tandem.cluster.engine.requests.protocols import CHAT, MESSAGES, RESPONSES
from tandem.cluster.engine.requests.request_checks import BadRequestError
from tandem.cluster.engine.requests.responses.fields import RULES as RESPONSES_RULES
from tandem.cluster.engine.requests.responses.fields import checked_response
from tandem.cluster.engine.requests.sampling import as_chat
from tandem.rl.sampling_marks import sampled_with

USER = {"role": "user", "content": "x"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def test_every_field_of_the_engine_has_a_rule():
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    assert set(ResponsesRequest.model_fields) <= set(RESPONSES_RULES)
    assert set(AnthropicMessagesRequest.model_fields) <= set(MESSAGES_RULES) | {"mm_payload", "return_mm_kwargs"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"request_id": "resp_of_another"}, "request_id"),
        ({"priority": -5}, "priority"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"return_token_ids": False}, "return_token_ids"),
        ({"n": 2}, "n"),
        ({"include": ["message.output_text.logprobs", "reasoning.encrypted_content"]}, "include.1"),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]}, "tools.1.type"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools.0.type"),
        ({"tools": [{"type": "code_interpreter", "container": {}}]}, "tools.0.type"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.type"),
        ({"reasoning": {"effort": "low", "summary": "detailed"}}, "reasoning.summary"),
        ({"reasoning": {"budget": 5}}, "reasoning.budget"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"input": [USER, {"type": "item_reference", "id": "x"}]}, "input.1.type"),
        ({"input": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"type": "reasoning", "content": [{"type": "x"}]}]}, "input.0.content.0"),
    ],
    ids=str,
)
def test_a_response_refuses_by_name(fields, param):
    with pytest.raises(BadRequestError) as caught:
        checked_response({"model": "policy-x", "input": "x", **fields})
    assert caught.value.param == param and param in caught.value.message


def test_a_response_accepts_what_clients_send_by_default():
    request = {
        "model": "policy-x",
        "input": [USER],
        "store": True,
        "background": False,
        "previous_response_id": None,
        "truncation": None,
        "service_tier": "auto",
        "reasoning": {"effort": "low", "summary": "auto", "generate_summary": None},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "stream_options": {"include_obfuscation": False},
        "return_token_ids": True,
        "safety_identifier": "u",
        "prompt_cache_key": "k",
        "metadata": {},
        "tool_choice": {"type": "function", "name": "f"},
        "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}],
    }
    kept = checked_response(request)
    ours = {"return_token_ids", "stream_options", "safety_identifier", "previous_response_id", "truncation"}
    assert kept == {name: value for name, value in request.items() if name not in ours} | {"store": False}


def test_all_text_of_an_item_reaches_the_model():
    text = lambda kind, *words: [{"type": kind, "text": word} for word in words]  # noqa: E731
    said = {"type": "message", "role": "assistant", "content": text("output_text", "one ", "two")}
    thought = {"type": "reasoning", "summary": [], "content": text("reasoning_text", "a", "b")}
    empty = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "content": []}
    silent = {"role": "assistant", "content": []}
    user = {"role": "user", "content": text("input_text", "one", "two")}
    items = checked_response({"input": [said, thought, empty, silent, user]})["input"]
    assert [part["text"] for item in items[:2] for part in item["content"]] == ["one two", "ab"]
    assert items[2] == empty | {"content": None}
    assert [part["text"] for part in items[3]["content"]] == [""]
    assert items[4] == user


BLOCK = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"container": "c"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"context_management": {"edits": []}}, "context_management"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"priority": -5}, "priority"),
        ({"speed": "fast"}, "speed"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"return_token_ids": False}, "return_token_ids"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048, "display": "omitted"}}, "thinking.display"),
        ({"output_config": {"task_budget": {}}}, "output_config.task_budget"),
        ({"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]}, "tools.1.type"),
        ({"tools": [TOOL | {"input_examples": [{}]}]}, "tools.0.input_examples"),
        ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"system": [BLOCK, {"type": "image", "source": {}}]}, "system.1.type"),
        ({"messages": [USER, {"role": "user", "content": [{"type": "document"}]}]}, "messages.1.content.0.type"),
        ({"messages": [{"role": "assistant", "content": [{"type": "redacted_thinking"}]}]}, "messages.0.content.0."),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "search"}]}]}]},
            "messages.0.content.0.content.0.type",
        ),
        (
            {"messages": [{"role": "user", "content": [BLOCK | {"citations": {"enabled": True}}]}]},
            "messages.0.content.0.",
        ),
    ],
    ids=str,
)
def test_a_message_refuses_by_name(fields, param):
    with pytest.raises(BadRequestError) as caught:
        checked_message({"model": "policy-x", "max_tokens": 5, "messages": [USER], **fields})
    assert caught.value.param.startswith(param) and param in caught.value.message


def test_a_message_accepts_what_agents_send():
    cached = {"cache_control": {"type": "ephemeral"}}
    turns = [
        {"role": "user", "content": [BLOCK | cached]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"}, BLOCK]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "f", "input": {}, "caller": None}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i", "content": "7", "is_error": True}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i", "content": [BLOCK]}]},
    ]
    request = {"model": "policy-x", "max_tokens": 5, "messages": turns, "system": [BLOCK | cached], "stream": True}
    request |= {"tools": [TOOL | cached | {"type": "custom", "strict": True}], "metadata": {"user_id": "u"}}
    request |= {"thinking": {"type": "enabled", "budget_tokens": 1024}, "tool_choice": {"type": "tool", "name": "f"}}
    assert checked_message(request | cached | {"service_tier": "auto", "return_token_ids": True}) == request


def test_a_count_of_tokens_takes_no_options_of_sampling():
    assert checked_count({"model": "policy-x", "messages": [USER], "system": None}) == {
        "model": "policy-x",
        "messages": [USER],
    }
    with pytest.raises(BadRequestError, match="max_tokens"):
        checked_count({"model": "policy-x", "messages": [USER], "max_tokens": 5})


@pytest.mark.parametrize(
    ("path", "request_", "changed"),
    [
        (CHAT, {"temperature": 1, "top_p": 0.5}, {"top_p": 0.5}),
        (RESPONSES, {"temperature": 0, "tool_choice": "auto"}, {"temperature": 0}),
        (RESPONSES, {"text": {"format": {"type": "text"}}}, {}),
        (RESPONSES, {"text": {"format": {"type": "json_schema"}}}, {"response_format": True}),
        (RESPONSES, {"tools": [{"type": "function", "name": "f", "strict": True}]}, {"tools": True}),
        (RESPONSES, {"tools": [{"type": "function", "name": "f", "strict": False}]}, {}),
        (RESPONSES, {"tools": [{"type": "namespace", "tools": [{"strict": True}]}]}, {"tools": True}),
        (RESPONSES, {"tool_choice": {"type": "function", "name": "f"}}, {"tool_choice": True}),
        (MESSAGES, {"top_k": 3, "top_p": 1}, {"top_k": 3}),
        (MESSAGES, {"tool_choice": {"type": "auto"}}, {}),
        (MESSAGES, {"tool_choice": {"type": "none"}, "tools": [TOOL]}, {}),
        (MESSAGES, {"tool_choice": {"type": "any"}}, {"tool_choice": True}),
        (MESSAGES, {"tool_choice": {"type": "tool", "name": "f"}}, {"tool_choice": True}),
        (MESSAGES, {"tools": [TOOL | {"strict": True}]}, {"tools": True}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema"}}}, {"response_format": True}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"thinking_token_budget": 1024}),
        (MESSAGES, {"thinking": {"type": "adaptive"}}, {}),
    ],
)
def test_what_changes_the_distribution_is_said_in_the_words_of_chat(path, request_, changed):
    assert sampled_with(as_chat(request_, path)) == changed
