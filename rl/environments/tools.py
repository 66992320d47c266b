"""Answer the tool calls of a turn. Mistakes of the model are told to the model, not raised."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tandem.rl.environments.base import Message


class ToolError(Exception):
    """Raised by a tool for invalid arguments; the model reads its message."""


@dataclass(frozen=True)
class ToolResult:
    """The answer to one tool call."""

    message: dict[str, Any]
    """The tool message that answers the call."""
    value: Any = None
    """The tool's return value; None if the call failed."""
    error: str | None = None
    """The fault of the call; None if it succeeded."""


async def call_tools(choice: Message, functions: Mapping[str, Callable[..., Any]]) -> list[ToolResult]:
    """Answer all tool calls of a turn, in order.

    An unknown tool, arguments that aren't a JSON object or don't fit the function, and a ToolError of the function are
    answered with a sentence. Any other exception of a function is a fault of the environment and propagates.

    Args:
        choice: the turn, as the chat returned it.
        functions: the function of each tool. It takes the call's arguments by name, and may be async.
    """
    return [await _answer(call, functions) for call in choice["message"].get("tool_calls") or []]


async def _answer(call: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]) -> ToolResult:
    try:
        function, arguments = _understood(call, functions)
        value = function(**arguments)
        if inspect.isawaitable(value):
            value = await value
    except ToolError as error:
        return ToolResult(_message(call, f"Error: {error}"), error=str(error))
    return ToolResult(_message(call, value if isinstance(value, str) else json.dumps(value)), value)


def _understood(
    call: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    written = call.get("function") or {"name": (call.get("custom") or {}).get("name"), "arguments": ""}
    name = written["name"]
    if name not in functions:
        raise ToolError(f"There is no tool {name!r}. The tools are: {', '.join(functions)}.")
    try:
        arguments = json.loads(written["arguments"] or "{}")
    except json.JSONDecodeError as error:
        raise ToolError(f"The arguments of {name} aren't valid JSON ({error}).") from error
    if not isinstance(arguments, dict):
        raise ToolError(f"The arguments of {name} must be a JSON object, with a value for each parameter.")
    try:
        inspect.signature(functions[name]).bind(**arguments)
    except TypeError as error:
        raise ToolError(f"{name} doesn't take these arguments: {error}.") from error
    return functions[name], arguments


def _message(call: Mapping[str, Any], content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call["id"], "content": content}
