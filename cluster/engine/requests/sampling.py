"""Records which options of a completion request make the engine sample from another distribution than the policy's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tandem.cluster.engine.requests.protocols import MESSAGES, RESPONSES

Changes = Callable[[Any], object]
"""True (or a value that counts as true) if an option with this value changes which tokens are sampled."""


def _unlike(*neutral: float) -> Changes:
    def changes(value: Any) -> bool:
        try:
            return float(value) not in neutral  # the engine accepts numbers in quotes too
        except (TypeError, ValueError, OverflowError):
            return bool(value)

    return changes


def _is_format(value: Any) -> bool:
    return not isinstance(value, Mapping) or value.get("type") != "text"


def _is_forced(value: Any) -> bool:
    return value not in ("auto", "none")


def _has_strict_tool(tools: Any) -> bool:
    """True if the engine holds calls of a tool to its schema."""
    functions = [tool.get("function") for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []
    return any(isinstance(function, Mapping) and function.get("strict") for function in functions)


CHANGES: dict[str, Changes] = {
    "temperature": _unlike(1),
    "top_p": _unlike(1),
    "top_k": _unlike(0, -1),
    "min_p": _unlike(0),
    "presence_penalty": _unlike(0),
    "frequency_penalty": _unlike(0),
    "repetition_penalty": _unlike(1),
    "logit_bias": bool,
    "allowed_token_ids": bool,
    "bad_words": bool,
    "min_tokens": _unlike(0),
    "thinking_token_budget": lambda value: True,
    "response_format": _is_format,
    "structured_outputs": bool,
    "tool_choice": _is_forced,
    "tools": _has_strict_tool,
    "use_beam_search": bool,
    "watermarking": bool,
    "vllm_xargs": bool,
}


def sampled_with(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a request that change the distribution, {} if none does. Null means unset.

    The value is the number that was sent, or true: a schema or a list may be large.
    """
    changed = {
        name: request[name]
        for name, changes in CHANGES.items()
        if request.get(name) is not None and changes(request[name])
    }
    return {name: value if isinstance(value, (int, float)) else True for name, value in changed.items()}


def as_chat(request: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Return the options of a request to one of the protocols by their names in chat."""
    if path == RESPONSES:
        tools = _mappings(request.get("tools"))
        tools += [inner for tool in tools for inner in _mappings(tool.get("tools"))]  # of a namespace
        functions = [{"function": tool} for tool in tools]
        return {**request, "tools": functions, "response_format": _field(request, "text", "format")}
    if path == MESSAGES:
        choice = _field(request, "tool_choice", "type")
        return {
            **request,
            "tools": [{"function": tool} for tool in _mappings(request.get("tools"))],
            "tool_choice": choice if choice in ("auto", "none") else request.get("tool_choice"),
            "response_format": _field(request, "output_config", "format"),
            "thinking_token_budget": _field(request, "thinking", "budget_tokens"),
        }
    return request


def _field(request: Mapping[str, Any], outer: str, inner: str) -> Any:
    value = request.get(outer)
    return value.get(inner) if isinstance(value, Mapping) else None


def _mappings(values: Any) -> list[Mapping[str, Any]]:
    return [value for value in values if isinstance(value, Mapping)] if isinstance(values, list) else []
