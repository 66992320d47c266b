"""The same request in each protocol, and each protocol's answer in one form, whole or from a stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tandem.cluster.engine.requests.protocols import CHAT, MESSAGES, RESPONSES


@dataclass(frozen=True)
class Said:
    """An answer: its tokens, as training reads them, and the agent's view of it."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    text: str
    calls: list[tuple[str, dict[str, Any]]]
    end: str
    """length, tool or stop"""
    num_tokens: tuple[int, int]
    marks: tuple[Any, Any, str]
    """policy_version, sampled_with and the name of the model."""


def request_to(path: str, chat: dict[str, Any], is_stream: bool = False) -> dict[str, Any]:
    """Return a request to chat as one of another protocol."""
    body = {**chat, "stream": is_stream}
    tools = [tool["function"] for tool in body.pop("tools", ())]
    if path == CHAT:
        return {**chat, "stream": is_stream, "logprobs": True, "return_token_ids": True}
    if path == RESPONSES:
        body["input"] = body.pop("messages")
        body["max_output_tokens"] = body.pop("max_tokens")
        return body | ({"tools": [{"type": "function", **tool} for tool in tools]} if tools else {})
    assert path == MESSAGES
    if "stop" in body:
        body["stop_sequences"] = body.pop("stop")
    if "tool_choice" in body:
        body["tool_choice"] = {"type": {"required": "any"}.get(body["tool_choice"], body["tool_choice"])}
    shown = [
        {"name": one["name"], "input_schema": one["parameters"], "description": one["description"]} for one in tools
    ]
    return body | ({"tools": shown} if shown else {})


def events_of(content: bytes) -> list[dict[str, Any]]:
    """Return the data of server-sent events, each of which names its type beside."""
    found = []
    for event in content.decode().split("\n\n"):
        if event:
            name, data = event.split("\ndata: ")
            found.append(json.loads(data))
            assert name == f"event: {found[-1]['type']}"
    return found


def said_in(path: str, content: bytes, is_stream: bool = False) -> Said:
    """Read an answer of one of the protocols."""
    if path == CHAT:
        return _chat(json.loads(content))
    if path == RESPONSES:
        return _response(_streamed_response(events_of(content)) if is_stream else json.loads(content))
    return _message(_streamed_message(events_of(content)) if is_stream else json.loads(content))


def _chat(answer: dict[str, Any]) -> Said:
    (choice,) = answer["choices"]
    message, usage = choice["message"], answer["usage"]
    calls = [
        (one["function"]["name"], json.loads(one["function"]["arguments"])) for one in message.get("tool_calls") or ()
    ]
    return Said(
        choice["prompt_token_ids"],
        choice["token_ids"],
        [entry["logprob"] for entry in choice["logprobs"]["content"]],
        message["content"] or "",
        calls,
        "length" if choice["finish_reason"] == "length" else "tool" if calls else "stop",
        (usage["prompt_tokens"], usage["completion_tokens"]),
        (choice["policy_version"], choice["sampled_with"], answer["model"]),
    )


def _response(answer: dict[str, Any]) -> Said:
    (generation,) = answer["token_generations"]
    assert generation["output_indices"] == list(range(len(answer["output"])))
    assert generation["policy_version"] == answer["policy_version"] and answer["store"] is False
    calls = [
        (item["name"], json.loads(item["arguments"])) for item in answer["output"] if item["type"] == "function_call"
    ]
    parts = [part for item in answer["output"] if item["type"] == "message" for part in item["content"]]
    ends = {"incomplete": "length", "completed": "tool" if calls else "stop"}
    usage = answer["usage"]
    return Said(
        generation["prompt_token_ids"],
        [token["token_id"] for token in generation["output_tokens"]],
        [token["logprob"] for token in generation["output_tokens"]],
        "".join(part["text"] for part in parts),
        calls,
        ends[answer["status"]],
        (usage["input_tokens"], usage["output_tokens"]),
        (generation["policy_version"], generation["sampled_with"], answer["model"]),
    )


def _streamed_response(events: list[dict[str, Any]]) -> dict[str, Any]:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    created, *_, completed = events
    assert (created["type"], completed["type"]) == ("response.created", "response.completed")
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert deltas == _response(completed["response"]).text
    assert created["response"]["policy_version"] == completed["response"]["policy_version"]
    return completed["response"]


def _message(answer: dict[str, Any]) -> Said:
    calls = [(block["name"], block["input"]) for block in answer["content"] if block["type"] == "tool_use"]
    ends = {"max_tokens": "length", "tool_use": "tool", "end_turn": "stop", "stop_sequence": "stop"}
    return Said(
        answer["prompt_token_ids"],
        answer["token_ids"],
        answer["logprobs"],
        "".join(block["text"] for block in answer["content"] if block["type"] == "text"),
        calls,
        ends[answer["stop_reason"]],
        (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]),
        (answer["policy_version"], answer["sampled_with"], answer["model"]),
    )


def _streamed_message(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Put a message together as Anthropic's clients do, with the fields that training reads in their places."""
    message, *_, delta, stop = events
    assert [one["type"] for one in (message, delta, stop)] == ["message_start", "message_delta", "message_stop"]
    answer = message["message"]
    assert answer["content"] == [] and "token_ids" not in answer
    written: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(answer["content"])
            answer["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, new = answer["content"][event["index"]], event["delta"]
            if new["type"] == "text_delta":
                block["text"] += new["text"]
            elif new["type"] == "input_json_delta":
                written[event["index"]] = written.get(event["index"], "") + new["partial_json"]
    for index, text in written.items():
        answer["content"][index]["input"] = json.loads(text)
    usage = answer["usage"] | delta["usage"]
    return answer | delta["delta"] | {"usage": usage, "token_ids": delta["token_ids"], "logprobs": delta["logprobs"]}
