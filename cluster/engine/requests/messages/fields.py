"""The fields of Anthropic's Messages: the ones that are supported, and why the others are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tandem.cluster.engine.requests.field_rules import (
    SHARED,
    Rule,
    check_fields,
    only,
    read,
    refused,
    without,
    without_effect,
)
from tandem.cluster.engine.requests.request_checks import BadRequestError

_RETURNED = "Token ids and logprobs are always returned."
_OWN = "There are no tools of the service: define a tool with an input_schema, and answer its calls."
_OF_RESULTS = ("text", "image", "tool_reference")
_BLOCKS = (*_OF_RESULTS, "tool_use", "tool_result", "thinking", "tool_addition", "tool_removal")


def _tools(place: str, value: Any) -> None:
    for index, tool in enumerate(value if isinstance(value, list) else ()):
        if isinstance(tool, Mapping):
            check_fields({"type": tool.get("type")}, {"type": only("custom", why=_OWN)}, f"{place}.{index}")
            check_fields(tool, _TOOL, f"{place}.{index}")


def _tool_choice(place: str, value: Any) -> None:
    if isinstance(value, Mapping):
        check_fields(value, dict.fromkeys(("type", "name", "disable_parallel_tool_use"), read), place)


def _thinking(place: str, value: Any) -> None:
    if isinstance(value, Mapping):
        check_fields(value, _THINKING, place)


def _output_config(place: str, value: Any) -> None:
    if isinstance(value, Mapping):
        check_fields(value, dict.fromkeys(("effort", "format"), read), place)


def _messages(place: str, value: Any) -> None:
    for index, message in enumerate(value if isinstance(value, list) else ()):
        if isinstance(message, Mapping):
            _content(f"{place}.{index}.content", message.get("content"), _BLOCKS)


def _system(place: str, value: Any) -> None:
    _content(place, value, ("text",))


def _content(place: str, value: Any, kinds: tuple[str, ...]) -> None:
    for index, block in enumerate(value if isinstance(value, list) else ()):
        if isinstance(block, Mapping):
            only(*kinds, why="Leave other blocks out.")(f"{place}.{index}.type", block.get("type"))
            check_fields(block, _BLOCK, f"{place}.{index}")
            if block.get("type") == "tool_result":
                _content(f"{place}.{index}.content", block.get("content"), _OF_RESULTS)


_TOOL: dict[str, Rule] = {
    **dict.fromkeys(("type", "name", "description", "input_schema", "strict", "defer_loading"), read),
    **dict.fromkeys(("cache_control", "eager_input_streaming"), without_effect),
}
_THINKING: dict[str, Rule] = {
    **dict.fromkeys(("type", "budget_tokens"), read),
    "display": only("summarized", why="Thinking is always returned, and whole."),
}
_BLOCK: dict[str, Rule] = {
    **dict.fromkeys(("type", "text", "source", "id", "tool_use_id", "name", "input", "content", "tool_name"), read),
    **dict.fromkeys(("thinking", "tool"), read),
    "is_error": without_effect,  # the text of the result says what failed; chat templates have no place for it
    "signature": without_effect,  # of thinking, which isn't encrypted here
    "cache_control": without_effect,
    "caller": without_effect,
    "citations": only([], False, {"enabled": False}, why="Answers cite nothing here."),
}
_COUNTED: dict[str, Rule] = {
    **dict.fromkeys(("model", "chat_template_kwargs"), read),
    "messages": _messages,
    "system": _system,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "thinking": _thinking,
    "output_config": _output_config,
    "cache_control": without_effect,  # prefixes are always cached
}
RULES: dict[str, Rule] = {
    **_COUNTED,
    **dict.fromkeys(("max_tokens", "stop_sequences", "stream", "temperature", "top_k", "top_p"), read),
    **dict.fromkeys(("cache_salt", "watermarking", "vllm_xargs"), read),
    "metadata": without_effect,
    "service_tier": only("auto", "standard_only", why="All requests have the same priority."),
    "return_token_ids": only(True, why=_RETURNED),
    "return_tokens_as_token_ids": only(True, why=_RETURNED),
    "thread": refused("Conversations aren't stored here: send all messages."),
    "container": refused(_OWN),
    "mcp_servers": refused(_OWN),
    "context_management": refused("Shorten the conversation before you send it."),
    "inference_geo": refused("Requests are answered where the service runs. Leave it out."),
    "speed": only("standard", why="All requests have the same priority."),
    **SHARED,
}
_OURS = ("return_token_ids", "return_tokens_as_token_ids", "service_tier", "cache_control")
"""Checked, and unknown to vLLM."""


def checked_message(request: dict[str, Any]) -> dict[str, Any]:
    """Return the request as vLLM's layer for Messages reads all of it. Raises BadRequestError."""
    check_fields(request, RULES)
    _check_choice(request.get("tool_choice"), request.get("tools"))
    return without(request, _OURS)


def checked_count(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request to count tokens, likewise."""
    check_fields(request, _COUNTED)
    return without(request, _OURS)


def _check_choice(choice: Any, tools: Any) -> None:
    """Raise BadRequestError for a choice of a tool that the request doesn't offer; vLLM doesn't check that."""
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "any" and not tools:
        raise BadRequestError("tool_choice.type is 'any' without tools. Offer some.", "tool_choice.type")
    offered = [tool.get("name") for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []
    if kind == "tool" and isinstance(choice, Mapping) and choice.get("name") not in offered:
        raise BadRequestError("tool_choice.name isn't that of one of the tools.", "tool_choice.name")
