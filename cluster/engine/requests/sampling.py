"""The options of a request by their names in chat, for the marks of what it samples (`rl.sampling_marks`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tandem.cluster.engine.requests.protocols import MESSAGES, RESPONSES


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
