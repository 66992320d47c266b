"""The fields of OpenAI's Responses: the ones that are supported, and why the others are refused.

Responses aren't stored, because a conversation may reach any of several engines: a request carries all of its input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

_SEND_ALL = "Responses aren't stored here: send the whole conversation as `input`."
_LEAVE = "Leave it out."
_TEXT = "Models answer with text here. Leave it out."
_RETURNED = "Token ids and logprobs are always returned, in `token_generations`."
LOGPROBS = "message.output_text.logprobs"
OWN_TOOLS = ("function", "custom", "namespace")


def _input(place: str, value: Any) -> None:
    for index, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, Mapping) and (kind := item.get("type")) not in _ITEMS:
            where = f"{place}.{index}.type"
            raise BadRequestError(
                f"{where} {str(kind)[:60]!r} isn't supported. Items are messages, reasoning, and calls of functions "
                "and custom tools with their outputs.",
                where,
            )


def _include(place: str, value: Any) -> None:
    for index, name in enumerate(value if isinstance(value, list) else ()):
        only(LOGPROBS, why="Reasoning is always returned as text, and there are no built-in tools.")(
            f"{place}.{index}", name
        )


def _tools(place: str, value: Any) -> None:
    for index, tool in enumerate(value if isinstance(value, list) else ()):
        if isinstance(tool, Mapping):
            only(*OWN_TOOLS, why="There are no built-in tools: define a function, and answer its calls.")(
                f"{place}.{index}.type", tool.get("type")
            )


def _tool_choice(place: str, value: Any) -> None:
    if isinstance(value, Mapping):
        only("function", "custom", why="Choose one tool by its name, or offer fewer tools.")(
            f"{place}.type", value.get("type")
        )


def _reasoning(place: str, value: Any) -> None:
    if isinstance(value, Mapping):
        check_fields(value, _REASONING, place)


def _text(place: str, value: Any) -> None:
    if isinstance(value, Mapping):
        check_fields(value, _TEXT_FIELDS, place)


def _stream_options(place: str, value: Any) -> None:
    if isinstance(value, Mapping):
        check_fields(value, {"include_obfuscation": only(False, why="Nothing is padded here.")}, place)


_ITEMS = (
    *(None, "message", "reasoning", "function_call", "function_call_output"),
    *("custom_tool_call", "custom_tool_call_output"),
)
_REASONING: dict[str, Rule] = {
    "effort": read,
    "summary": only("auto", why="Reasoning is returned whole, as text."),
    "generate_summary": only("auto", why="Reasoning is returned whole, as text."),
}
_TEXT_FIELDS: dict[str, Rule] = {
    "format": read,
    "verbosity": only("medium", why="Say in the instructions how long an answer should be."),
}
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("logit_bias", "seed", "stop", "stop_token_ids", "ignore_eos", "max_output_tokens", "vllm_xargs"),
    *("watermarking", "structured_outputs"),
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAMPLING, read),
    **dict.fromkeys(("model", "instructions", "stream", "parallel_tool_calls", "truncation", "cache_salt"), read),
    **dict.fromkeys(("chat_template_kwargs", "include_reasoning", "skip_special_tokens"), read),
    **dict.fromkeys(("include_stop_str_in_output", "top_logprobs"), read),
    **dict.fromkeys(("metadata", "user", "safety_identifier", "prompt_cache_key"), without_effect),
    "store": without_effect,  # `store` of the answer is false
    "input": _input,
    "include": _include,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "reasoning": _reasoning,
    "text": _text,
    "stream_options": _stream_options,
    "service_tier": only("auto", "default", why="All requests have the same priority."),
    "background": only(False, why="Wait for the answer, or stream it."),
    "return_token_ids": only(True, why=_RETURNED),
    "return_tokens_as_token_ids": only(True, why=_RETURNED),
    "previous_response_id": refused(_SEND_ALL),
    "previous_input_messages": refused(_SEND_ALL),
    "conversation": refused(_SEND_ALL),
    "prompt": refused("There are no stored prompts: send `instructions` and `input`."),
    "context_management": refused("Shorten the conversation before you send it."),
    "max_tool_calls": refused("It limits calls of built-in tools, and there are none. Leave it out."),
    "enable_response_messages": refused(_RETURNED),
    "prompt_cache_retention": refused("Prefixes are cached as long as there is room. Leave it out."),
    "moderation": refused(_LEAVE),
    **SHARED,
    **dict.fromkeys(("media_io_kwargs", "mm_processor_kwargs", "mm_payload", "return_mm_kwargs"), refused(_TEXT)),
}


def checked_response(request: dict[str, Any]) -> dict[str, Any]:
    """Return the request as vLLM's layer for Responses reads all of it. Raises BadRequestError."""
    check_fields(request, RULES)
    if request.get("top_logprobs") and LOGPROBS not in (request.get("include") or ()):
        raise BadRequestError(f"top_logprobs has an effect only with include: ['{LOGPROBS}'].", "top_logprobs")
    kept = without(request, _OURS) | {"store": False}
    if isinstance(items := kept.get("input"), list):
        kept["input"] = [_joined(item, f"input.{index}") for index, item in enumerate(items)]
    return kept


_OURS = ("return_token_ids", "return_tokens_as_token_ids", "stream_options", "safety_identifier")
"""Checked, and unknown to vLLM."""


def _joined(item: Any, place: str) -> Any:
    """Return an item with its text in one part: of an assistant's message and of reasoning, vLLM reads the first."""
    if not isinstance(item, Mapping) or not isinstance(item.get("content"), list):
        return item
    if item.get("type") == "reasoning":
        text = "".join(_texts(item["content"], ("reasoning_text", "text"), f"{place}.content"))
        return {**item, "content": [{"type": "reasoning_text", "text": text}] if item["content"] else None}
    if item.get("role") == "assistant":
        text = "".join(_texts(item["content"], ("output_text", "input_text", "text"), f"{place}.content"))
        return {**item, "content": [{"type": "output_text", "text": text, "annotations": []}]}
    return item


def _texts(parts: list[Any], kinds: tuple[str, ...], place: str) -> Iterator[str]:
    for index, part in enumerate(parts):
        if not isinstance(part, Mapping) or part.get("type") not in kinds or not isinstance(part.get("text"), str):
            where = f"{place}.{index}"
            raise BadRequestError(f"{where} must be text: a part of type {kinds[0]!r}.", where)
        yield part["text"]
